#!/bin/bash
# Runs the README's tour word for word: every line that starts with `$ ` in its section, against a relay started for it in
# a data directory of its own. Prints what happens; fails where a line fails (a line may say that it will, `# exits 1`).
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
AGENT_RELAY_DATA_DIR=$(mktemp -d)
export AGENT_RELAY_DATA_DIR NO_COLOR=1
"$target/release/relay" --cores 2 >"$AGENT_RELAY_DATA_DIR/up.txt" 2>&1 &
relay=$!
trap 'kill "$relay" 2>/dev/null || true; rm -rf "$AGENT_RELAY_DATA_DIR"' EXIT
for _ in $(seq 100); do
    grep -q 'is up' "$AGENT_RELAY_DATA_DIR/up.txt" && break
    sleep 0.1
done
grep -q 'is up' "$AGENT_RELAY_DATA_DIR/up.txt" || {
    echo "the relay did not start (cargo build --release comes first):" >&2
    cat "$AGENT_RELAY_DATA_DIR/up.txt" >&2
    exit 1
}
sed -n '/^## A two-minute tour/,/^## /p' README.md | sed -n 's/^\$ //p' | grep -v '^cargo run' |
    sed "s|\$PWD/target/release|$target/release|" > "$AGENT_RELAY_DATA_DIR/tour.sh"
# shellcheck disable=SC2016 # expanded by the inner shell
timeout 60 bash -c 'set -uo pipefail
    while IFS= read -r line <&3; do
        echo "\$ $line"
        eval "$line"; status=$?
        case "$line" in *"# exits 1"*) expected=1 ;; *) expected=0 ;; esac
        [ "$status" = "$expected" ] || { echo "this line exits $status, not $expected" >&2; exit 1; }
        # A person takes longer than this between two lines; what was started in the background speaks meanwhile.
        sleep 0.3
    done 3< "$1"' tour "$AGENT_RELAY_DATA_DIR/tour.sh"
cat "$AGENT_RELAY_DATA_DIR/up.txt"
echo "the tour works"
