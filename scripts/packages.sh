# Sourced by the other scripts: the Debian packages troupe needs, and how they get here.

build_packages=(
  g++ cmake ninja-build ccache
  libcaf-dev            # C++ Actor Framework 0.17, with its OpenSSL module
  libucx-dev            # links between processes
  libboost-dev          # Asio, headers only: the loop that drives them, sockets
  libssl-dev            # HMAC, random numbers, TLS
  libdnnl-dev           # oneDNN: matrix products
  libtomlplusplus-dev   # configuration
  libcli11-dev libfmt-dev nlohmann-json3-dev
)
quickstart_packages=("${build_packages[@]}" bible-kjv)
test_packages=(
  "${build_packages[@]}"
  libgtest-dev
  openssl               # certificates, for the tests of TLS
  slurm-wlm munge openmpi-bin  # what starts tasks, for the tests of what they are told
  iproute2 iputils-ping # networks of the tests' own
  python3               # scripts/tidy.py and an independent reader of safetensors
  clang-format-14
  clang-14 libclang-rt-14-dev  # libFuzzer
  llvm-14               # names in its findings
)

# need_packages NAME...: installs what is missing, and says so first. Ends the script where it cannot.
need_packages() {
  local name missing=()
  for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return
  if ! command -v apt-get >/dev/null; then
    echo "troupe is built with Debian 12's packages, and there is no apt-get here. Missing: ${missing[*]}" >&2
    exit 2
  fi
  # A machine just started may be updating itself: wait for dpkg's lock.
  local apt_get=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
  local by_hand="apt-get update && apt-get install --no-install-recommends ${missing[*]}"
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "Packages are missing, and installing them needs root or sudo. As root, run:  $by_hand" >&2
      exit 2
    fi
    apt_get=(sudo "${apt_get[@]}")
  fi
  echo "Installing from Debian: ${missing[*]}"
  if ! { "${apt_get[@]}" update && "${apt_get[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null; }; then
    echo "The packages could not be installed; the reason is above. As root, by hand:  $by_hand" >&2
    exit 1
  fi
}
