#!/bin/sh
# Writes the users' file from the passwords and the generated rules, and becomes redis-server.
# A user is known by the hash of its password; nobody else gets in.
set -eu
umask 077
{
  echo "user default off resetkeys resetchannels -@all"
  while read -r role rules; do
    case "$role" in "#" | "") continue ;; esac
    # A role that has no password here has no user either.
    [ -s "/etc/hanmaru/passwords/$role" ] || continue
    hash=$(printf %s "$(cat "/etc/hanmaru/passwords/$role")" | sha256sum | cut -c1-64)
    echo "user $role on #$hash resetchannels $rules"
  done </etc/hanmaru/config/acl-rules.txt
} >/run/hanmaru/users.acl
exec redis-server /etc/hanmaru/config/redis.conf
