#!/usr/bin/env bash
# Which sampler is worth its model calls? The study of docs/samplers.md, on the built-in model or on yours.
#
#     bash run.sh [--model FOLDER] [any other flag of `easel bench samplers`]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
easel=${EASEL:-$here/../../target/release/easel}
"$easel" bench samplers --prompts "$here/prompts.txt" --samplers ddim,euler,euler_a,heun,dpmpp_2m,dpmpp_2s,unipc,lms \
  --steps 5,10,20,50 --seeds 0..1 --output "$here/study" "$@"
echo "open $here/study/report.html"
