#pragma once
// A file of the results of all correct cases, one line of JSON each: the host build writes it, a device build compares.
#include <string>

#include "cases.h"

namespace selftest {

// Largest |got - expected|, relative where |expected| > 1; infinite where sizes differ or a value is NaN.
double largest_error(const Outcome& outcome);

// Both return the exit status. asks: on a device, which also runs what only it can tell and prints a line of each.
int write_golden(const Cases& cases, const std::string& file);
int compare_golden(Cases (*all_cases)(), const std::string& file, bool asks);

}  // namespace selftest
