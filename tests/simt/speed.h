#pragma once

namespace selftest {

// Times the executor on the workloads that its documentation lists; prints a line each and one of JSON.
int measure_speed();

}  // namespace selftest
