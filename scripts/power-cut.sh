#!/bin/sh
# Power cuts under load, many times: `scripts/power-cut.sh 1000`, as root. Keeps the result in perf/results/power-cut.txt.
# `scripts/power-cut.sh --self-test` shows that the test can fail: builds of the relay that flush nothing (NO_SYNC) and
# all but the last page of a commit (NO_META_SYNC) must both lose what they promised. No released build has these.
set -eu
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# What is built now, whatever is committed meanwhile.
commit=$(git rev-parse --short HEAD)
stamp() { echo "$(date -u +%FT%TZ) $commit"; }
cut_power() {
    cargo test --test faults -- --exact --nocapture \
        power::nothing_durable_is_lost_when_the_power_is_cut >"$log" 2>&1
}

if [ "${1:-}" = --self-test ]; then
    target="${CARGO_TARGET_DIR:-target}"
    kept=perf/results/power-cut-self-test.txt
    for way in no_sync no_meta_sync; do
        echo "building a relay that commits with $way ..."
        RUSTFLAGS="--cfg relay_unsafe_sync=\"$way\"" cargo build --bin relay --target-dir "$target/$way"
        program="$(cd "$target/$way" && pwd)/debug/relay"
        if RELAY_FAULT_PROGRAM="$program" RELAY_FAULT_CYCLES=240 cut_power; then
            cat "$log"
            echo "$way went unnoticed: the power cut test is blind" >&2
            exit 1
        fi
        grep -q 'broken promises\|the daemon did not start' "$log" || { cat "$log"; echo "it failed for another reason" >&2; exit 1; }
        seen=$(grep -A 2 'broken promises\|the daemon did not start' "$log" | tr '\n' ' ' | cut -c 1-400)
        cycles=$(grep -c '^power cut: cycle' "$log" || true)
        echo "$(stamp) $way: found, as it must be, in cycle $cycles: $seen" | tee -a "$kept"
    done
    exit 0
fi

RELAY_FAULT_CYCLES="${1:-1000}"
export RELAY_FAULT_CYCLES
status=0
cargo test --test faults -- --exact --nocapture \
    power::nothing_durable_is_lost_when_the_power_is_cut 2>&1 | tee "$log" || status=$?
result=$(grep '^RESULT' "$log") || { echo "not run, or promises were broken; see above" >&2; exit 1; }
seed=$(sed -n 's/.*\(RELAY_FAULT_SEED=[0-9]*\).*/\1/p' "$log" | head -n 1)
echo "$(stamp) $seed ${result#RESULT }" | tee -a perf/results/power-cut.txt
exit "$status"
