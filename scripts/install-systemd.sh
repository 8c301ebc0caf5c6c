#!/bin/sh
# Installs the units for the whole machine, or with --user for the calling user. Expects `relay` in /usr/local/bin
# (with --user: anywhere on the path). Prints each command before it runs.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

if [ "${1:-}" = "--user" ]; then
    units=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
    relay=$(command -v relay) || { echo "relay is not on the path; install it first" >&2; exit 1; }
    mkdir -p "$units"
    # A user's relay lies where that user's clients look for it.
    sed -e "s|^ExecStart=.*|ExecStart=$relay up --global|" -e '/^User=/d' -e '/^Group=/d' -e '/^StateDirectory/d' \
        -e '/^Requires=relay.socket/d' -e '/^Protect/d' -e '/^Private/d' -e '/^CapabilityBoundingSet/d' -e '/^LimitMEMLOCK/d' \
        -e 's|^WantedBy=.*|WantedBy=default.target|' "$here/systemd/relay.service" > "$units/relay.service"
    set -x
    systemctl --user daemon-reload
    systemctl --user enable --now relay.service
    exit 0
fi

[ "$(id -u)" = 0 ] || { echo "run as root, or with --user for yourself alone" >&2; exit 1; }
[ -x /usr/local/bin/relay ] || { echo "/usr/local/bin/relay is missing; install it first" >&2; exit 1; }
set -x
id relay >/dev/null 2>&1 || useradd --system --home-dir /var/lib/agent-relay --shell /usr/sbin/nologin relay
install -d -m 0700 -o relay -g relay /var/lib/agent-relay
install -m 0644 "$here/systemd/relay.service" "$here/systemd/relay.socket" /etc/systemd/system/
systemctl daemon-reload
systemctl enable --now relay.socket relay.service
