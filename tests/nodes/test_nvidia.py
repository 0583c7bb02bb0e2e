"""nvidia: the GPUs on the bus are the GPUs that torch sees, none as well as four; one driver, held, without nouveau."""

import pytest

COUNT = "import torch; print(torch.cuda.device_count())"
ON_THE_BUS = """
count=0
for device in /sys/bus/pci/devices/*/; do
  if grep -qsi 0x10de "$device/vendor" && grep -qsi ^0x03 "$device/class"; then count=$((count + 1)); fi
done
echo $count
"""
LOADED, MARK = "/sys/module/nvidia/version", "/var/lib/minos-nvidia/packages"


@pytest.fixture
def on_the_bus(host):
    """How many GPUs are this node's: a container sees those of its host, also where it was not given them."""
    if host.run("systemd-detect-virt --container").rc == 0 and not host.file("/dev/nvidiactl").exists:
        return 0
    return int(host.check_output("sh -c %s", ON_THE_BUS))


def test_nvidia_torch_sees_every_gpu_on_the_bus(host, told, on_the_bus):
    expected = on_the_bus if told.variant != "cpu" else 0
    assert int(host.check_output("%s/bin/python -I -c %s", told.env_path, COUNT)) == expected


def test_nvidia_library_and_module_are_of_one_version(host, told, on_the_bus):
    if not on_the_bus or told.variant == "cpu":
        pytest.skip("no GPU that torch would use")
    asked = host.check_output("nvidia-smi --query-gpu=driver_version --format=csv,noheader").split()
    assert set(asked) == {host.file(LOADED).content_string.strip()}


def test_nvidia_without_a_gpu_nothing_is_installed(host, on_the_bus):
    if on_the_bus:
        pytest.skip("it has a GPU")
    assert not host.file("/etc/modprobe.d/minos-nvidia.conf").exists and not host.file(MARK).exists


def test_nvidia_driver_and_kernel_are_held(host, told):
    if not host.file(MARK).exists:
        pytest.skip("the driver is not ours")
    held = set(host.check_output("apt-mark showhold").split())
    ours = {name for name in host.file(MARK).content_string.split() if "nvidia" in name}
    assert ours <= held and [name for name in held if name.startswith("linux-image-")]
    assert not host.file("/sys/module/nouveau").exists
