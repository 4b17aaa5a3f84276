#!/bin/sh
# Fuzzes every reader for SECONDS at the same time, under libFuzzer with the address and undefined
# behaviour sanitizers. Exits with 1 after a finding, whose input is then under build/fuzz/<target>;
# put it into tests/fuzz/corpus/<target> once it is understood.
#
# Usage: tests/fuzz/run.sh SECONDS     Needs Debian's clang-14, llvm-14, libcaf-dev, libfmt-dev,
#                                      libtomlplusplus-dev and nlohmann-json3-dev.
set -eu

seconds=${1:?usage: tests/fuzz/run.sh SECONDS}
cd "$(dirname "$0")/../.."
root=$PWD/tests/fuzz
out=$PWD/build/fuzz
PATH=$PATH:/usr/lib/llvm-14/bin # llvm-symbolizer, which names the functions in a finding
targets="parse_config from_csv communication_from_csv parse_safetensors read_hello read_header read_message
  parse_recorded_steps parse_profile"

flags="-std=c++20 -O1 -gline-tables-only -fno-sanitize-recover=all -Iengine/include -Istages/include -Istorage/include
  -Itransport/include -Itransport/src -Iactors/include -Iactors/src
  -Icli/src"

# Besides the engine, of which each target takes what it needs.
sources_of() {
  case $1 in
    parse_safetensors) echo storage/src/safetensors_*.cpp storage/src/mapped_file.cpp storage/src/file.cpp ;;
    read_hello) echo transport/src/gate/hello.cpp ;;
    read_header) echo transport/src/ucx/ucx_header.cpp transport/src/ucx/ucx_card.cpp ;;
    read_message)
      echo actors/src/director.cpp actors/src/door.cpp actors/src/message_checks.cpp \
        actors/src/step_report.cpp stages/src/device.cpp -lcaf_core
      ;;
    parse_profile) echo cli/src/profile_file.cpp storage/src/text_file.cpp storage/src/mapped_file.cpp storage/src/file.cpp -lfmt ;;
    parse_recorded_steps) echo cli/src/recorded_steps.cpp cli/src/step_comparison.cpp -lfmt ;;
  esac
}

build_engine() {
  rm -rf "$out/engine"
  mkdir -p "$out/engine"
  # shellcheck disable=SC2016,SC2086 # One word per flag; the inner shell fills in $1.
  printf '%s\n' engine/src/*.cpp | xargs -P "$(nproc)" -I{} sh -c \
    'out=$1 source=$2; shift 2; clang++-14 "$@" -c "$source" -o "$out/engine/$(basename "$source").o"' \
    sh "$out" {} $flags -fsanitize=fuzzer-no-link,address,undefined
  ar rcs "$out/engine/libengine.a" "$out"/engine/*.o
}

build() {
  mkdir -p "$out/$1/found"
  # shellcheck disable=SC2046,SC2086 # One word per source and flag.
  clang++-14 $flags -fsanitize=fuzzer,address,undefined "tests/fuzz/$1.cpp" $(sources_of "$1") \
    "$out/engine/libengine.a" -o "$out/$1/fuzz"
}

fuzz() {
  "$out/$1/fuzz" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
    -dict="$root/$1.dict" -artifact_prefix="$out/$1/" -print_final_stats=1 \
    "$out/$1/found" "$root/corpus/$1" >"$out/$1/log" 2>&1
}

echo "building the engine"
build_engine
processes=
for target in $targets; do
  echo "building $target"
  build "$target" &
  processes="$processes $!"
done
for process in $processes; do
  wait "$process"
done
processes=
for target in $targets; do
  fuzz "$target" &
  processes="$processes $target:$!"
done
status=0
for process in $processes; do
  target=${process%:*}
  if wait "${process#*:}"; then
    echo "$target: no finding in $(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$target/log") inputs"
  else
    status=1
    echo "$target: a finding; the end of $out/$target/log:"
    tail -n 40 "$out/$target/log"
  fi
done
exit $status
