"""nvidia: the GPUs on the bus are the GPUs that torch sees, none as well as four."""

COUNT = "import torch; print(torch.cuda.device_count())"
ON_THE_BUS = """
count=0
for device in /sys/bus/pci/devices/*/; do
  if grep -qsi 0x10de "$device/vendor" && grep -qsi ^0x03 "$device/class"; then count=$((count + 1)); fi
done
echo $count
"""


def test_nvidia_torch_sees_every_gpu_on_the_bus(host, told):
    on_the_bus = int(host.check_output("sh -c %s", ON_THE_BUS))
    assert int(host.check_output("%s/bin/python -I -c %s", told.env_path, COUNT)) == on_the_bus
