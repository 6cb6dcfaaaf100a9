#!/usr/bin/env bash
# curl against a running server (EASEL_URL): the example, jobs, events, and what the operator's tools read.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
has() { grep -q -- "$1" "$2" || { echo "expected $1 in:"; head -c 2000 "$2"; exit 1; }; }

bash "$here/../../examples/curl/generate.sh" "a \"quoted\" flower" "$dir/flower.png"
head -c 4 "$dir/flower.png" | grep -q PNG

# A job at once, then its events to the end.
curl -sSf -D "$dir/head" -o "$dir/job" "$EASEL_URL/v1/images/generations" -H 'content-type: application/json' \
  -H 'prefer: respond-async' -d '{"prompt": "a white house", "steps": 6}'
has '202' "$dir/head"
id=$(grep -o 'job_[0-9A-Z]*' "$dir/job" | head -n 1)
curl -sSfN --max-time 60 "$EASEL_URL/v1/jobs/$id/events" > "$dir/events"
has '^event: progress' "$dir/events"
has '^event: succeeded' "$dir/events"
curl -sSf "$EASEL_URL/v1/jobs/$id?wait=30" > "$dir/job"
has '"status": *"succeeded"' "$dir/job"

# A picture to change, as a form, and the job keeps it.
curl -sSf "$EASEL_URL/v1/images/edits" -F image=@"$dir/flower.png" -F prompt="a red flower" -F strength=0.4 -F steps=6 \
  > "$dir/edit"
has '"url"' "$dir/edit"
curl -sSf "$EASEL_URL/v1/images/variations" -F image=@"$dir/flower.png" -F n=2 -F steps=4 > "$dir/varied"
[ "$(curl -s -o "$dir/error" -w '%{http_code}' "$EASEL_URL/v1/images/edits" -F image=@"$0" -F prompt=x)" = 400 ]
has 'invalid_image' "$dir/error"

for path in /healthz /readyz /openapi.json /docs /; do curl -sSf -o /dev/null "$EASEL_URL$path"; done
curl -sSf "$EASEL_URL/metrics" > "$dir/metrics"
has '^easel_' "$dir/metrics"
[ "$(curl -s -o "$dir/error" -w '%{http_code}' "$EASEL_URL/v1/nothing")" = 404 ]
has '"request_id"' "$dir/error"
echo "curl: ok"
