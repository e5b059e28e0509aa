#include "cuda/device/device.h"
#include "cuda/mlstm_chunkwise/current_device.h"

namespace xlstm::cuda {

MlstmDevice mlstm_device() {
  constexpr int kCapability = 90;  // which has wgmma, and no other one
  const device::DeviceProperties d = device::device_properties();
  return {d.compute_capability == kCapability && compiled_for_wgmma(), d.multiprocessors, device::max_shared_bytes()};
}

}  // namespace xlstm::cuda
