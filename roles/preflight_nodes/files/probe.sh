# What preflight asks a node, in one go. Reads only. The lines before this one set: address, peers, paths, accounts...
section() { printf '\n@%s\n' "$1"; }
section time
date +%s.%N
section user
id -u
section system
cat /etc/os-release
section machine
uname -m
cat /proc/1/comm
section python
"$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
section sudo
command -v sudo
section memory
sed -n 's/^MemTotal: *//p' /proc/meminfo
section identity
echo "machine $(cat /etc/machine-id)"
echo "boot $(cat /proc/sys/kernel/random/boot_id)"
echo "key $(cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub)"
section links
ip -json address show
section wireless
for link in /sys/class/net/*/wireless /sys/class/net/*/phy80211; do
  if [ -e "$link" ]; then link=${link%/*}; echo "${link##*/}"; fi
done
section routes
for peer in $peers; do echo "$peer $(ip -json -4 route get "$peer")"; done
section space
# A network share can hang whoever looks at it.
for path in $paths; do
  echo "$path $(timeout 5 sh -c 'p=$0; until [ -e "$p" ]; do p=${p%/*}; p=${p:-/}; done; df -Pk "$p" | tail -n 1' "$path")"
done
section accounts
for account in $accounts; do getent passwd "$account" | cut -d: -f1; done
section made
for path in $made; do
  if timeout 5 test -e "$path"; then echo "$path"; fi
done
section jobs
for file in /etc/minos/jobs/*.env; do
  if [ -e "$file" ]; then
    job=${file##*/}
    job=${job%.env}
    echo "$job $(systemctl is-active "minos-train@$job.service") $(sed -n 's/^MINOS_\(STORE\|CLUSTER_IP\)=//p' "$file" | tr '\n' ' ')"
  fi
done
section firewalls
# Where firewalld keeps the rules, there is no ufw that these would quarrel with.
if ! systemctl is-active --quiet firewalld.service; then
  if [ "$(dpkg-query --show --showformat '${db:Status-Status}' netfilter-persistent)" = installed ]; then echo netfilter-persistent; fi
  if [ "$(systemctl is-enabled nftables.service)" = enabled ]; then echo nftables; fi
fi
section services
if [ -e /etc/systemd/system/minos-store.service ]; then echo rendezvous; fi
if [ -e /etc/systemd/system/minos-tensorboard.service ]; then echo tensorboard; fi
section end
