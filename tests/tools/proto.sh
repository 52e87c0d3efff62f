#!/usr/bin/env bash
# The proto files: buf lint, buf format, and buf breaking against what landed before.
#
# What landed before is looked for in this order, and every one that is there is compared: the fork point from
# origin/main, else the parent commit; and the newest tag. CARILLON_PROTO_BASE names another commit.
set -euo pipefail
cd "$(dirname "$0")/../.."

buf=tests/foreign/node/node_modules/.bin/buf
[ -x "$buf" ] || { echo "error: buf is missing; run: make tools" >&2; exit 1; }

"$buf" lint proto
"$buf" format --diff --exit-code proto

if ! git rev-parse --git-dir >/dev/null 2>&1; then
  echo "buf breaking: not a git checkout, nothing to compare with"
  exit 0
fi
if [ "$(git rev-parse --is-shallow-repository)" = true ] && ! git rev-parse -q --verify HEAD~1 >/dev/null; then
  git fetch --quiet --deepen=1 || echo "buf breaking: the shallow clone could not be deepened"
fi

resolve() { git rev-parse -q --verify "$1^{commit}" 2>/dev/null || true; }
head=$(resolve HEAD)
fork=$(git merge-base HEAD origin/main 2>/dev/null || true)
[ -n "$fork" ] && [ "$fork" != "$head" ] || fork=$(resolve HEAD~1)
bases=("$(resolve "${CARILLON_PROTO_BASE:-}")")
[ -n "${CARILLON_PROTO_BASE:-}" ] || bases=("$fork" "$(resolve "$(git describe --tags --abbrev=0 2>/dev/null || true)")")

compared=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for base in "${bases[@]}"; do
  [ -n "$base" ] && git cat-file -e "$base:proto" 2>/dev/null || continue
  mkdir -p "$scratch/$base"
  git archive "$base" proto | tar -x -C "$scratch/$base"
  "$buf" breaking proto --against "$scratch/$base/proto"
  echo "buf breaking: compatible with $(git log -1 --format='%h %s' "$base")"
  compared=$((compared + 1))
done
[ "$compared" -gt 0 ] || echo "buf breaking: no earlier commit holds proto files, nothing to compare with"
