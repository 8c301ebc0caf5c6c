#!/bin/sh
# kill -9 under load, many times: `scripts/crash.sh 1000`. Prints progress; keeps the result in perf/results/crash.txt.
set -eu
cd "$(dirname "$0")/.."
cycles="${1:-1000}"
# What is built now, whatever is committed meanwhile.
commit=$(git rev-parse --short HEAD)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
RELAY_FAULT_CYCLES="$cycles" cargo test --test faults -- --exact --nocapture \
    crash::nothing_durable_is_lost_when_the_daemon_is_killed 2>&1 | tee "$log"
result=$(grep '^RESULT' "$log") || { echo "promises were broken; the seed is above" >&2; exit 1; }
seed=$(sed -n 's/.*\(RELAY_FAULT_SEED=[0-9]*\).*/\1/p' "$log" | head -n 1)
echo "$(date -u +%FT%TZ) $commit $seed ${result#RESULT }" | tee -a perf/results/crash.txt
