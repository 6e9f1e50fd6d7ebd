#!/bin/bash
# As the official image: root hands over, a first server without TCP sets the database up, then the real one.
set -e
if [ "$(id -u)" = 0 ]; then
    mkdir -p /run/mysqld
    chown -R mysql /var/lib/mysql /run/mysqld
    exec gosu mysql "$0" "$@"
fi
[ -n "$MYSQL_ROOT_PASSWORD" ] || { echo "Database is uninitialized and password option is not specified" >&2; exit 1; }
mariadb-install-db --skip-test-db --auth-root-authentication-method=normal >/dev/null
{
    echo "FLUSH PRIVILEGES;"
    echo "ALTER USER root@localhost IDENTIFIED BY '$MYSQL_ROOT_PASSWORD';"
    echo "CREATE DATABASE \`$MYSQL_DATABASE\`;"
    echo "CREATE USER '$MYSQL_USER'@'%' IDENTIFIED BY '$MYSQL_PASSWORD';"
    echo "GRANT ALL ON \`$MYSQL_DATABASE\`.* TO '$MYSQL_USER'@'%';"
} | mariadbd --bootstrap >/dev/null
exec mariadbd --bind-address='*' --skip-name-resolve
