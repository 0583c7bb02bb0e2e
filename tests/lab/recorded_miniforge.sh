#!/bin/sh
# In place of Miniforge's installer and of conda, which nothing here can be fetched from: it takes the same options, puts
# a `conda` there that writes down what it was asked, and makes an environment of the system's Python. What it cannot show
# is that conda itself understands these commands.
set -e
[ "$1" = -b ] && [ "$2" = -p ] || { echo "usage: $0 -b -p PREFIX" >&2; exit 2; }
prefix=$3
[ ! -e "$prefix" ] || { echo "ERROR: File or directory already exists: '$prefix'" >&2; exit 1; }
mkdir -p "$prefix/bin" "$prefix/etc/profile.d"
cat > "$prefix/etc/profile.d/conda.sh" <<'PROFILE'
conda() { [ "$1" = activate ] && PATH="$2/bin:$PATH"; }
PROFILE
cat > "$prefix/bin/conda" <<'CONDA'
#!/bin/sh
set -e
echo "$*" >> "$(dirname "$0")/asked"
target= packages=
while [ $# -gt 0 ]; do
  case $1 in
    --prefix) target=$2; shift ;;
    *.conda) [ -s "$1" ] || { echo "$1: no such package" >&2; exit 1; }; packages="$packages $1" ;;
  esac
  shift
done
[ -n "$packages" ] || { mkdir -p "$CONDA_PKGS_DIRS"; echo python > "$CONDA_PKGS_DIRS/python-3.11.conda"; }
python3 -m venv --without-pip "$target"
CONDA
chmod +x "$prefix/bin/conda"
