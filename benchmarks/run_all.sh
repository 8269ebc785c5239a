#!/bin/bash
# Every row of RESULTS.md that this machine can measure, one after the other; from any folder.
# Two quiet CPU cores: within 15 minutes. A GPU of 78 GiB: SIZE=real ./benchmarks/run_all.sh
SIZE=${SIZE:-mini}                        # of the networks: tiny, mini or real
PHOTOS=${PHOTOS:-real}                    # of the photos' benchmark, which needs no network
OUTPUT=${OUTPUT:-output/benchmarks}       # folder for the JSON files
PYTHON=${PYTHON:-.venv/bin/python}
WORKERS=${WORKERS:-4}                     # of the row with data workers, on a GPU only
ROWS=${ROWS:-"sdxl sdxl_lean flux"}       # of bench_memory; on a GPU also flux_nf4

cd "$(dirname "$0")/.." || exit 1
failed=0
bench() {                                 # bench <name of the JSON file> <benchmark> <flags>
    local name=$1 which=$2
    shift 2
    echo "== $which $*"
    "$PYTHON" -m "benchmarks.bench_$which" --json="$OUTPUT/$name.json" "$@" 2>"$OUTPUT/$name.log" ||
        { echo "failed; see $OUTPUT/$name.log"; failed=1; }
}
mkdir -p "$OUTPUT"

bench data data --size="$PHOTOS"
bench data_growth data --size="$PHOTOS" --grow photos subjects --megapixels 1 --samples=50
bench data_growth_12 data --size="$PHOTOS" --grow photos --megapixels 12.2 --numbers 10 100 --samples=50
for family in sdxl flux; do
    for variant in default cached; do
        bench "step_${family}_$variant" step --family="$family" --size="$SIZE" --variant "$variant"
    done
    bench "infer_$family" infer --family="$family" --size="$SIZE"
done
bench step_sweep step --sweep resolution batch rank subjects --turns=1 --size="$SIZE"
for row in $ROWS; do bench "memory_$row" memory --row="$row" --size="$SIZE"; done
bench dnc dnc --size="$SIZE"
if [ "$SIZE" = real ]; then
    for family in sdxl flux; do
        bench "step_${family}_workers" step --family="$family" --size=real --workers="$WORKERS" \
            --variant default
    done
else
    bench dnc_real dnc --size=real --device=cpu --pictures=2 --batch_size=2 --rounds=1
    bench processes processes --size="$SIZE" --turns=3
fi
exit $failed
