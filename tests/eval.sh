#!/bin/sh
# SPDX-License-Identifier: MIT
# mpipe-eval as users call it: with results, and with pictures to be run first
# (on the plain C backend).
set -u
srcdir=${srcdir:-.}
builddir=${builddir:-.}
eval=$(cd "$builddir" && pwd)/mpipe-eval
eval=${MPIPE_EVAL:-$eval}
mpipe=$(cd "$builddir" && pwd)/mpipe
mpipe=${MPIPE:-$mpipe}
make_weights=${MAKE_WEIGHTS:-$builddir/tests/make_weights}
data=$(cd "$srcdir/tests/data/awkward" && pwd)
golden=$(cd "$srcdir/tests/golden" && pwd)
conf=$(cd "$srcdir/conf" && pwd)

dir=$(mktemp -d "${TMPDIR:-/tmp}/mpipe-eval-test.XXXXXX") || exit 99
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$dir/models" "$dir/tmp"
for task in seg depth pose; do
    "$make_weights" "$golden/keys/tiny_$task.json" \
        "$dir/models/demo-$task.safetensors" || exit 99
done
MPIPE_MODEL_PATH=$dir/models
TMPDIR=$dir/tmp
export MPIPE_MODEL_PATH TMPDIR
cd "$dir" || exit 99
failures=0

fail() {
    echo "FAIL: $*"
    sed 's/^/    /' err
    failures=$((failures + 1))
}

# run STATUS ARGUMENT...: mpipe-eval ends with this status; out and err are kept.
run() {
    want=$1
    shift
    "$eval" "$@" > out 2> err
    got=$?
    [ $got = "$want" ] || fail "status $got, not $want: mpipe-eval $*"
}

says() {
    grep -q "^mpipe: .*$1" err || fail "does not say \"$1\""
}

# value FILE NAME WANT [WITHIN]: the first number of this name, within 1e-9
value() {
    sed -n "s/.*\"$2\": \([-0-9.e]*\).*/\1/p" "$1" | head -n 1 |
        awk -v want="$3" -v within="${4:-1e-9}" \
            '{ d = $1 - want; found = d <= within && d >= -within }
            END { exit !found }' ||
        fail "$1: $2 is not $3: $(grep "\"$2\":" "$1")"
}

# ---- results that are there ----

# a depth map in which every pixel is off by a tenth
mkdir -p one/pred one/gt
cp "$golden/png16_nyu.png" one/gt/a.png
cp "$golden/png16_nyu.png" one/pred/a.png
depth="-c $conf/depth.ini"
run 2 $depth one/pred one/gt
says 'one/pred/a.png: it has no text chunk depth_scale'
run 0 $depth -o eval.pred_scale=900 one/pred one/gt --json j --csv c
value j abs_rel 0.1111111111111111 1e-8 # depths are of 32 bits
grep -q '^ *d1 .* silog$' out || fail "no table: $(cat out)"
grep -q '^1 pictures$' out || fail "no number of pictures"
[ "$(head -n 1 c)" = \
    picture,d1,d2,d3,abs_rel,sq_rel,rmse,rmse_log,log10,silog,pixels ] ||
    fail "first line of the CSV: $(head -n 1 c)"
grep -q '^a,1,1,1,0.1111111' c || fail "the CSV: $(cat c)"
run 0 $depth -o eval.pred_scale=1000 --json - one/pred/a.png one/gt/a.png
value out abs_rel 0
[ "$(head -n 1 out)" = '{' ] || fail "standard output is not JSON only"
run 0 $depth -o eval.pred_scale=1000 --double-count 8 one/pred one/gt
grep -q 'the first 7 counted again, as by 8 processes' out || fail "no 8"

# all that is missing is named
cp one/gt/a.png one/gt/b.png
cp one/gt/a.png one/gt/c.png
run 2 $depth one/pred one/gt
says 'one/gt/b.png: no result'
says 'one/gt/c.png: no result'
says '2 of 3 pairs are not complete'
[ ! -s out ] || fail "something was computed"
printf 'x.jpg one/gt/a.png 518.8\ny.jpg one/gt/none.png\n' > list
run 2 $depth one/pred list
says '2 of 2 pairs are not complete'

# label maps of a network, as a benchmark server takes them
if [ -n "${MPIPE_SHARED:-}" ]; then
    ade=$MPIPE_SHARED/protocol/samples/seg_ade20k
    mkdir -p ade/pred ade/gt
    for name in ADE_val_00000278 ADE_val_00001519; do
        cp "$ade/${name}_label.png" ade/gt/$name.png
        cp "$ade/${name}_other_model_prediction.png" ade/pred/$name.png
    done
    seg="-c $conf/seg.ini -o pipeline.classes=ade20k"
    seg="$seg -o eval.reduce_zero_label=yes -o eval.pred_labels=ids"
    for threads in 1 2; do
        run 0 $seg -o compute.threads=$threads ade/pred ade/gt \
            --json j$threads --csv c
        value j$threads aAcc 0.8451966086733114
        value j$threads mIoU 0.48752174791520825
        value j$threads mAcc 0.669093973017039
    done
    cmp j1 j2 || fail "two threads give something else than one"
    grep -q '^ADE_val_00000278,0.866966041.*,0.504948860.*,0.689195982' c ||
        fail "ade: $(cat c)"
    grep -q '^   84.52   48.75   66.91$' out || fail "ade: $(tail -n 2 out)"
    city=$MPIPE_SHARED/protocol/samples/seg_cityscapes
    run 0 -c "$conf/seg.ini" -o pipeline.classes=cityscapes \
        -o eval.pred_labels=ids --json j \
        "$city/frankfurt_000000_000294_gtFine_labelIds.png" \
        "$city/frankfurt_000000_000294_gtFine_labelIds.png"
    value j aAcc 1
    value j stray_labelled 0
    run 0 -c "$conf/seg.ini" -o pipeline.classes=cityscapes --json j \
        -o eval.gt_labels=index \
        "$city/frankfurt_000000_000294_gtFine_labelIds.png" \
        "$city/frankfurt_000000_000294_gtFine_labelIds.png"
    says 'pixels of the ground truth are no class'
else
    echo "SKIPPED: label maps of photos want MPIPE_SHARED"
fi

# poses, by the conventions of both evaluators
pose="-o pipeline.head=pose"
run 0 $pose --json j "$golden/coco_ap_small_dt.json" \
    "$golden/coco_ap_small_gt.json"
value j AP 0.328025302530253
value j 'AR .75' 0.5
run 0 $pose --coco-tools pycocotools --json j \
    "$golden/coco_ap_small_dt.json" "$golden/coco_ap_small_gt.json"
value j AP 0.1838283828382838
run 0 $pose --json j "$golden/coco_e2e_expected_keypoints.json" \
    "$golden/coco_e2e_gt.json"
value j AP 0.428609913618368
grep -q ' AR (L)$' out || fail "no table of poses"
run 2 $pose "$golden/coco_ap_main_dt.json" "$golden/coco_e2e_gt.json"
says 'coco_ap_main_dt.json: result \[.*the ground truth has no image'
run 2 $pose --csv c x y
says 'no metrics of a single picture'

# ---- from pictures ----

mkdir -p in/sub depth/gt/sub seg/gt/sub
cp "$data/odd_37x29_420.jpg" in/a.jpg
cp "$data/small_444.jpg" in/sub/b.jpg
for task in seg depth; do
    ref="-c $conf/$task.ini -o compute.backend=ref"
    "$mpipe" -q $ref -r in $task/out || fail "mpipe for $task"
    kind=$(ls $task/out | sed -n 's/^a\.\(labels\|png16\)\.png$/\1/p')
    cp $task/out/a.$kind.png $task/gt/a.png
    cp $task/out/sub/b.$kind.png $task/gt/sub/b.png
    run 0 $ref --images in --out $task/kept --json $task/j1 $task/gt
    run 0 $ref $task/kept $task/gt --json $task/j2
    run 0 $ref --images in --json $task/j3 $task/gt
    # what is kept is used again
    cp "$data/small_444.jpg" in/a.jpg
    run 0 $ref --images in --out $task/kept --json $task/j4 $task/gt
    cp "$data/odd_37x29_420.jpg" in/a.jpg
    for j in 2 3 4; do
        cmp $task/j1 $task/j$j || fail "$task: the same twice differs"
    done
    [ -z "$(ls tmp)" ] || fail "left in TMPDIR: $(ls tmp)"
    value $task/j1 pictures 2
done

# what a benchmark server takes, of classes that have numbers there
awk '/"color"/ { sub(/"color"/, "\"label_id\": " 10 + n++ ", &") } { print }' \
    "$conf/classes/demo.json" > numbered.json
ref="-c $conf/seg.ini -o compute.backend=ref"
numbered="$ref -o pipeline.classes=$dir/numbered.json"
"$mpipe" -q $numbered -o "output.formats=labels ids" -r in seg/ids 2> err ||
    fail "mpipe for ids"
cmp -s seg/ids/a.labels.png seg/ids/a.ids.png && fail "ids are classes"
cmp seg/ids/a.labels.png seg/gt/a.png || fail "ids change the labels"
run 0 $numbered -o eval.pred_labels=ids --json j seg/ids seg/gt
value j aAcc 1
value j stray_predicted 0
run 2 $numbered -o eval.pred_labels=ids --images in seg/gt
says 'pred_labels = ids: the results of --images are classes'
"$mpipe" -q $ref -o output.formats=ids -r in seg/none 2> err
[ $? = 2 ] || fail "ids of classes without label_id"
says 'formats = ids: the classes of .* have no label_id'

# people where boxes are; a picture that is not annotated is not run
joints=$(awk 'BEGIN { for (i = 0; i < 17; i++)
    printf "%s%d,%d,2", i ? "," : "", 5 + i, 3 + i }')
person="\"category_id\":1,\"bbox\":[2,1,20,25],\"area\":2000,
    \"keypoints\":[$joints]"
printf '{"images":[%s,%s],"annotations":[{"id":1,"image_id":7,%s},
    {"id":2,"image_id":9,%s}]}' \
    '{"id":9,"file_name":"a.jpg","width":37,"height":29}' \
    '{"id":7,"file_name":"b.jpg","width":32,"height":32}' \
    "$person" "$person" > people.json
cp "$data/odd_37x29_420.jpg" in/nobody.jpg
ref="-c $conf/pose.ini -o compute.backend=ref -o pose.input=64x48"
ref="$ref -o pipeline.boxes=$dir/people.json"
run 0 $ref --images in --out pose --json j1 people.json
run 0 $ref --json j2 pose people.json
cmp j1 j2 || fail "poses that are kept differ"
value j1 pictures 2
[ ! -e pose/nobody.json.json ] || fail "a picture without annotation was run"
rm in/nobody.jpg
mv in/sub/b.jpg b.jpg
run 2 $ref --images in people.json
says 'b.jpg: this picture is not there'
mv b.jpg in/sub
ref="-c $conf/depth.ini -o compute.backend=ref"

value seg/j1 aAcc 1
value depth/j1 d1 1
ls depth/kept > out
grep -q '^a.npy.npy$' out || fail "kept: $(cat out)"
grep -q png out && fail "kept: $(cat out)"

printf '/a.jpg /a.png 518.8\nb.jpg None\nsub/b.jpg sub/b.png\n' > list
run 0 $ref --images in --gt-root depth/gt --json j list
value j left_out 1
cmp depth/j1 j > /dev/null && fail "left_out is not told"
sed 's/"left_out": 1/"left_out": 0/' j | cmp - depth/j1 || fail "list"
run 2 $ref --images in --gt-root seg list
says 'seg/a.png: No such file'
says '2 of 4 files are not there'

cp "$data/truncated.png" in/bad.png
cp depth/gt/a.png depth/gt/bad.png
run 1 $ref --images in depth/gt
says '1 of 3 pictures failed, so nothing is evaluated'
[ ! -s out ] || fail "something was evaluated"
[ -z "$(ls tmp)" ] || fail "left in TMPDIR: $(ls tmp)"
rm in/bad.png

# ---- what is wrong with the call ----

run 2
says 'PRED and GT are needed'
run 2 --images in
says 'GT is needed'
run 2 -c "$conf/depth.ini" --out x one/pred one/gt
says 'with --images only'
run 2 one/pred one/gt
says 'head is not set'
run 2 $depth -o eval.crop=nyuu one/pred one/gt
says 'did you mean nyu?'
run 2 $depth -o eval.min_depth=10 one/pred one/gt
says 'min_depth 10 must be below max_depth 10'
run 2 -c "$conf/seg.ini" -o pipeline.classes=camvid -o eval.gt_labels=ids one/pred \
    one/gt
says 'have no label_id'
run 2 $depth --gt-root one one/pred one/gt
says '.-gt-root: one/gt is no list'
run 2 $ref --gt-root one --images in depth/gt
says '.-gt-root: depth/gt is no list'
run 2 $pose --gt-root one "$golden/coco_ap_small_dt.json" \
    "$golden/coco_ap_small_gt.json"
says 'the ground truth of poses is no list'
run 2 $depth nowhere one/gt
says 'nowhere: No such file'
run 2 $depth one/pred nowhere
says 'nowhere: No such file'
run 2 --no-such
rm one/gt/b.png one/gt/c.png
run 3 $depth -o eval.pred_scale=900 --json nowhere/j one/pred one/gt
says 'nowhere/j: No such file'
run 0 --version
grep -q '^mpipe-eval [0-9]' out || fail "--version"
run 0 --help
grep -q '^usage: mpipe-eval' out || fail "--help"

[ $failures = 0 ] || {
    echo "eval: $failures failures"
    exit 1
}
echo "eval: all as it should be"
