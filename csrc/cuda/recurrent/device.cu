#include "cuda/device/device.h"
#include "cuda/recurrent/device.h"

namespace xlstm::cuda {

RecurrentDevice recurrent_device() {
  const device::DeviceProperties d = device::device_properties();
  return {d.compute_capability, d.multiprocessors, d.max_cluster};
}

}  // namespace xlstm::cuda
