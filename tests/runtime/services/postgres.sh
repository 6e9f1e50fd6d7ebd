#!/bin/bash
# As the official image: root hands over, a first server without TCP sets the database up, then the real one.
set -e
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    chown -R postgres "$PGDATA" /var/run/postgresql
    chmod 700 "$PGDATA"
    exec gosu postgres "$0" "$@"
fi
[ -n "$POSTGRES_PASSWORD" ] || { echo "Error: Database is uninitialized and superuser password is not specified." >&2; exit 1; }
# shellcheck disable=SC2086 # a list of arguments
initdb --username="${POSTGRES_USER:-postgres}" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") $POSTGRES_INITDB_ARGS >/dev/null
pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start >/dev/null
[ "${POSTGRES_DB:-postgres}" = postgres ] || createdb -U "${POSTGRES_USER:-postgres}" "$POSTGRES_DB"
pg_ctl -D "$PGDATA" -m fast -w stop >/dev/null
exec "$@" -c listen_addresses='*'
