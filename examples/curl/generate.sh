#!/usr/bin/env bash
# Draws a picture with curl: one call for its URL, one for the file.
#
#     bash generate.sh "a purple flower on a yellow background" flower.png
set -euo pipefail
url=${EASEL_URL:-http://127.0.0.1:8080}
prompt=${1:-a purple flower on a yellow background}
file=${2:-easel.png}
body=$(printf '{"prompt": "%s", "seed": 4}' "${prompt//\"/\\\"}")
picture=$(curl -sSf "$url/v1/images/generations" -H "authorization: Bearer ${EASEL_KEY:-none}" \
  -H 'content-type: application/json' -d "$body" | grep -o '"url": *"[^"]*"' | head -n 1 | cut -d '"' -f 4)
curl -sSf -o "$file" "$picture"
echo "$file"
