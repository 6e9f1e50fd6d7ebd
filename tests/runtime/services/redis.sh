#!/bin/sh
# As the official image: a configuration file is an argument of redis-server; root hands over.
set -e
[ "${1%.conf}" = "$1" ] || set -- redis-server "$@"
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
    find . ! -user redis -exec chown redis '{}' +
    exec gosu redis "$0" "$@"
fi
exec "$@"
