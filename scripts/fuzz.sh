#!/bin/bash
# Runs every fuzz target for FUZZ_SECONDS each: 60 for the two decoders, which every stranger reaches, 20 for the others. Needs cargo-fuzz (`cargo install cargo-fuzz --locked`) and a C++
# compiler; where there is none it says so and does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "SKIPPED: fuzzing, because cargo-fuzz is not installed (cargo install cargo-fuzz --locked)"
    exit 0
fi
if ! command -v c++ >/dev/null; then
    echo "SKIPPED: fuzzing, because there is no C++ compiler for libFuzzer (apt-get install g++)"
    exit 0
fi
# The sanitizer flags are unstable; the compiler is the stable one all the same.
export RUSTC_BOOTSTRAP=1
for file in tests/fuzz/fuzz_targets/*.rs; do
    target=$(basename "$file" .rs)
    case $target in *_decode) seconds=60 ;; *) seconds=20 ;; esac
    mkdir -p "tests/fuzz/corpus/$target"
    # What is found goes to a scratch folder first, so that a run does not grow the committed corpus.
    found=$(mktemp -d)
    cargo fuzz run --fuzz-dir tests/fuzz "$target" "$found" "tests/fuzz/corpus/$target" -- -max_total_time="${FUZZ_SECONDS:-$seconds}" -max_len=65536 -print_final_stats=1 -verbosity=0
    rm -rf "$found"
done
