#!/usr/bin/env bash
# The native tests of the NEON kernels, cross-built for aarch64 and run under qemu-user.
#
#   tools/native_neon.sh [cases [seed [threads]]]
#
# Installs Debian's cross compiler and emulator if they are not here and may be installed (root). Exit status 77: not possible here, with
# the reason; 0: all equal.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user)
command -v cmake >/dev/null || { echo "skipped: cmake is not installed"; exit 77; }
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "skipped: needs ${missing[*]} (apt-get install ${missing[*]})"
    exit 77
  fi
  echo "installing ${missing[*]}"
  (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}") >/dev/null 2>&1 || {
    echo "skipped: could not install ${missing[*]}"
    exit 77
  }
fi
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)

build=build/native-neon
cmake -S packages/esbnn-core/csrc -B "$build" -DCMAKE_BUILD_TYPE=Release -DESBNN_TESTS=ON \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ >/dev/null
cmake --build "$build" --target esbnn_native_tests -j "${JOBS:-1}" >/dev/null
"$qemu" -L /usr/aarch64-linux-gnu "$build/esbnn_native_tests" "${1:-300}" "${2:-1}" "${3:-3}" 0  # 0: no fork, which the emulator cannot do with threads
