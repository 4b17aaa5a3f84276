# Sourced by the other scripts: the Debian packages troupe needs, and how they get here.

build_packages=(
  g++ cmake ninja-build ccache
  libcaf-dev            # C++ Actor Framework 0.17
  libdnnl-dev           # oneDNN: matrix products
  libtomlplusplus-dev   # configuration
  libcli11-dev libfmt-dev nlohmann-json3-dev
)
quickstart_packages=("${build_packages[@]}" bible-kjv)
test_packages=(
  "${build_packages[@]}"
  libgtest-dev
  python3               # scripts/tidy.py and an independent reader of safetensors
  clang-format-14
  clang-14 libclang-rt-14-dev  # libFuzzer
)

# need_packages NAME...: installs what is missing, and says so first.
need_packages() {
  local name missing=()
  for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return
  echo "Installing from Debian: ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "They need root, and there is no sudo: run as root  apt-get install ${missing[*]}" >&2
      exit 2
    fi
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
