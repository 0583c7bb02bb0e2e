# What decides about the driver, asked of one node in one go. Reads only. The lines before this one set: pci, efi, mark.
section() { printf '\n@%s\n' "$1"; }
section cards
# Class 0x03 is a display controller: the card's audio and USB functions carry NVIDIA's vendor number too.
for device in "$pci"/*/; do
  if grep -qsi 0x10de "$device/vendor" && grep -qsi '^0x03' "$device/class"; then
    echo "$(basename "$device") $(cat "$device/device")"
  fi
done
section container
systemd-detect-virt --container
section devices
ls /dev/nvidiactl 2>/dev/null
section system
cat /etc/os-release
section running
uname -r
section kernels
dpkg-query --show --showformat='${db:Status-Abbrev}${Package}\n' 'linux-image-*' 2>/dev/null | sed -n 's/^[a-z]i *linux-image-//p'
# mokutil says the same, but is not everywhere. The last of the five bytes is the value.
section secureboot
for variable in "$efi"/efivars/SecureBoot-*; do
  if [ -e "$variable" ]; then od -An -tu1 -j4 -N1 "$variable"; fi
done
section enrolled
for key in /var/lib/dkms/mok.pub /var/lib/shim-signed/mok/MOK.der; do
  if [ -e "$key" ] && mokutil --test-key "$key" 2>/dev/null | grep -q 'already enrolled'; then echo "$key"; fi
done
section desktop
ls /etc/systemd/system/display-manager.service 2>/dev/null
section sources
apt-get indextargets --format '$(SOURCESENTRY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' 2>/dev/null
section keys
grep -HiE '^(uris|signed-by):|^deb .*signed-by=' /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null
section ours
cat "$mark" 2>/dev/null
section packaged
dpkg-query --show --showformat='${db:Status-Abbrev}${Package} ${Version}\n' '*nvidia*' 2>/dev/null | sed -n 's/^[a-z]i *//p'
section loaded
sed -n 's/^NVRM version: .*  \([0-9][0-9.]*[0-9]\)  .*/\1/p' /proc/driver/nvidia/version 2>/dev/null
section foreign
if tool=$(command -v nvidia-smi) && ! dpkg-query --search "$(readlink -f "$tool")" >/dev/null 2>&1; then echo "$tool"; fi
section nouveau
ls -d /sys/module/nouveau 2>/dev/null
section jobs
systemctl list-units --plain --no-legend --state=active,activating 'minos-train@*' | cut -d' ' -f1
section end
