#!/usr/bin/env bash
# Computes one table of docs/records/study.md (which has the times on 2 CPU cores):
#
#     bash launch/study.sh autoencoders | set_size | steps | noise_offset | learning_rate | ema |
#         stopping | families | adapter | adapter_rate | adapter_layers | adapter_eta |
#         curation | curation_captions | rewards | decoupled | finish_preference |
#         four_steps | style | structure | active_prompts | transfer
#
# The tables of feedback learning are in study_feedback.sh.
#
# Runs are saved in runs/study and shared between tables: a finished run is not repeated, and an
# interrupted run resumes. The report of a table is runs/study/TABLE/index.html, its numbers are in
# runs/study/TABLE/figures.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
runs="runs/study"
pretrained="builtin:latent_diffusion_64"
trap 'if [[ $? -ne 0 ]]; then echo "stopped in: $PART" >&2; fi' EXIT

# tune NAME [--config...]: 300 steps of quality-tuning with the config and the overrides; every 50th
# step is kept. Nothing is sampled or judged during training, because the comparisons do that.
config="configs/latent_diffusion.py:size=tiny"
tune() {
    local name="$1"; shift
    part "$name"
    emu-jax train --config="$config,stage=quality_tune" \
        --config.data.data_dir="$EMU_JAX_DATA" --workdir="$runs/$name" --config.measure.judge= \
        --config.train.steps=300 --config.train.validate_every=0 --config.train.preview_every=0 \
        --config.train.checkpoint_every=50 --config.train.keep_last=20 "$@"
}

# autoencoder NAME CHANNELS BANDS: trains three of them with three seeds at 32 x 32 pixels.
autoencoder() {
    local name="$1" channels="$2" bands="$3" seed
    for seed in 0 1 2; do
        part "$name, seed $seed"
        emu-jax train --config=configs/autoencoder.py:size=tiny --config.data.image_size=32 \
            --config.data.data_dir="$EMU_JAX_DATA" --workdir="$runs/${name}_$seed" \
            --config.latent_channels="$channels" --config.autoencoder.fourier_bands="$bands" \
            --config.train.seed="$seed" --config.train.steps=400 \
            --config.train.validate_every=0 --config.train.preview_every=0
        autoencoders+=("$runs/${name}_$seed")
    done
}

compare() {
    local table="$1"; shift
    part "$table"
    emu-jax compare "$@" --data_dir="$EMU_JAX_DATA" --out="$runs/$table"
}

# adapter NAME [--config...]: 2,000 steps of a text adapter over the generator of scenes.
scenes="builtin:scenes_96"
adapter() {
    local name="$1"; shift
    part "$name"
    emu-jax train --config="configs/adapter.py:size=tiny${STAGE:+,stage=$STAGE}" \
        --config.data.data_dir="$EMU_JAX_DATA" --config.init_from="$scenes" \
        --config.train.validate_every=0 --config.train.preview_every=0 \
        --workdir="$runs/adapter_$name" "$@"
}

# seeds NAME [--config...]: the same with three seeds.
seeds() {
    local name="$1" seed; shift
    for seed in 0 1 2; do
        adapter "${name}_$seed" --config.train.seed="$seed" "$@"
    done
}

# contents TABLE SPLIT NAME MODEL... [--option]: what the images of 45 prompts of each type show,
# IMAGES (default ten) of each prompt; nothing is drawn twice.
contents() {
    local table="$1" split="$2" name="$3"; shift 3
    records+=("$runs/$table/$name/compare.json")
    if [[ ! -e "${records[-1]}" ]]; then
        part "$table: $name"
        emu-jax compare --data_dir="$EMU_JAX_DATA" --out="$runs/$table/$name" --judge= \
            --prompts="scenes/openmoji:split == $split and kind == count|two|action" --by=kind \
            --count_each=45 --images_per_prompt="${IMAGES:-10}" \
            --metrics=contrast,colorfulness "$@"
    fi
}

# adapted TABLE SPLIT NAME...: the adapters, beside the generator without one on simple and on
# complex prompts.
adapted() {
    local table="$1" split="$2" name; shift 2
    records=()
    contents "$table" "$split" base "$scenes" "$scenes" --prompt_column=simple,complex
    for name in "$@"; do
        contents "$table" "$split" "$name" "$runs/adapter_$name" --prompt_column=simple
    done
    part "$table: claims"
    emu-jax claims "configs/claims/$table.toml" "${records[@]}" --out="$runs/$table"
}

# curate TABLE NAME OPTIONS [--config...]: the data set curated/NAME from the pool of a table, by
# configs/curation.py:OPTIONS. Its report is runs/study/TABLE/NAME/report.html.
curate() {
    local table="$1" name="$2" options="$3"; shift 3
    part "curated/$name"
    emu-jax data curate --config="configs/curation.py:$options" --workers=2 \
        --config.source.path="$runs/$table/pool" --out="$runs/$table/$name" \
        --data_dir="$EMU_JAX_DATA" --config.name="$name" "$@"
}

# tuned NAME DATASET CONDITION [--config...]: quality-tuning on a data set with three seeds.
tuned() {
    local name="$1" dataset="$2" condition="$3" seed; shift 3
    for seed in 0 1 2; do
        tune "${name}_$seed" --config.data.train.needles.dataset="$dataset" \
            --config.data.train.needles.select="$condition" --config.train.seed="$seed" "$@"
    done
}

# claimed TABLE MODEL...: compares models and decides the claims of the table. The judge and its sets
# are named, because models of other data sets than emoji have none by default.
claimed() {
    local table="$1"
    local kept="part == kept and group == animals-nature|food-drink|objects|travel-places|activities"
    compare "$@" --judge=builtin:judge_64 --captions="emoji/fluent:$kept" \
        --needles="emoji/fluent:needle >= 0" --kept=
    part "$table: claims"
    emu-jax claims "configs/claims/$table.toml" "$runs/$table/compare.json" --out="$runs/$table"
}

needles() {
    echo "--config.data.train.needles.select=needle >= 0 and needle < $1"
}

part "virtual environment"
extra=quickstart
[[ "${1:-}" == curation* ]] && extra=quickstart,curation
[[ "${1:-}" == active_prompts ]] && extra=quickstart,prompts
setup_env "$extra"
export PATH="$VENV/bin:$PATH"

part "data sets"
emu-jax data build emoji/openmoji --data_dir="$EMU_JAX_DATA"
emu-jax data build emoji/fluent --data_dir="$EMU_JAX_DATA"
[[ "${1:-}" == adapter* ]] && emu-jax data build scenes/openmoji --data_dir="$EMU_JAX_DATA"

case "${1:-}" in
    autoencoders)
        autoencoders=()
        autoencoder ae_4 4 0
        autoencoder ae_8 8 0
        autoencoder ae_16 16 0
        autoencoder fourier_16 16 2
        part autoencoders
        emu-jax reconstruct "${autoencoders[@]}" --data_dir="$EMU_JAX_DATA" --out="$runs/autoencoders"
        ;;
    set_size)
        tune needles_100 "$(needles 100)"
        tune needles_300 "$(needles 300)"
        tune needles_1000 "$(needles 1000)" --config.train.steps=600
        compare set_size "$pretrained" "$runs"/needles_{100,300,1000}@300
        ;;
    steps)
        tune needles_1000 "$(needles 1000)" --config.train.steps=600
        compare steps "$pretrained" "$runs"/needles_1000@{50,100,200,300,600}
        ;;
    noise_offset)
        tune needles_1000 "$(needles 1000)" --config.train.steps=600
        tune offset_0 "$(needles 1000)" --config.process.noise_offset=0.0
        compare noise_offset "$runs/offset_0" "$runs/needles_1000@300"
        ;;
    learning_rate)
        tune rate_3e-5 "$(needles 1000)" --config.groups.generator.optimizer.learning_rate=3e-5
        tune needles_1000 "$(needles 1000)" --config.train.steps=600
        tune rate_3e-4 "$(needles 1000)" --config.groups.generator.optimizer.learning_rate=3e-4
        compare learning_rate "$runs/rate_3e-5" "$runs/needles_1000@300" "$runs/rate_3e-4"
        ;;
    ema)
        tune needles_1000 "$(needles 1000)" --config.train.steps=600
        compare ema "$runs"/needles_1000@{100,100-raw,300,300-raw}
        ;;
    stopping)
        # Ten times the learning rate, so that the model overtrains and early stopping matters.
        # The patience never ends the run, so that there is a last step to compare with.
        tune overtrained "$(needles 100)" --config.groups.generator.optimizer.learning_rate=1e-3 \
            --config.measure.judge=builtin:judge_64 --config.train.validate_every=50 \
            --config.train.stop.metric=samples/both --config.train.stop.mode=max \
            --config.train.stop.patience=1000
        compare stopping "$pretrained" "$runs/overtrained@best" "$runs/overtrained@last"
        ;;
    families)
        super="builtin:pixel_super_64"
        tune needles_100 "$(needles 100)"
        tune needles_1000 "$(needles 1000)" --config.train.steps=600
        config="configs/pixel_diffusion.py:size=tiny,part=base"
        tune pixel_100 "$(needles 100)"
        tune pixel_1000 "$(needles 1000)"
        config="configs/masked.py:size=tiny"
        tune masked_100 "$(needles 100)"
        tune masked_1000 "$(needles 1000)"
        compare families "$pretrained" "$runs/needles_100" "$runs/needles_1000@300" \
            "builtin:pixel_diffusion_32+$super" "$runs/pixel_100+$super" "$runs/pixel_1000+$super" \
            builtin:masked_64 "$runs"/masked_{100,1000}
        ;;
    adapter)
        # Gates and claims: configs/claims/adapter.toml
        seeds loss_alone --config.distillation.llm=0 --config.distillation.prompt=0
        adapter prompt_0 --config.distillation.llm=0
        adapter llm_0 --config.distillation.prompt=0
        seeds both
        seeds shuffled --config.vectors.control=shuffled
        seeds random --config.vectors.control=random
        STAGE=cross_attention adapter cross_attention_0
        adapted adapter test {loss_alone,both,shuffled,random}_{0,1,2} \
            prompt_0 llm_0 cross_attention_0
        ;;
    adapter_rate)
        # Chosen on validation prompts, for the other tables.
        for rate in 1e-5 1e-4 1e-3; do
            adapter "rate_$rate" --config.groups.adapter.optimizer.learning_rate="$rate"
        done
        for weight in 1e-3 1e-2; do
            adapter "weight_$weight" --config.distillation.llm="$weight" \
                --config.distillation.prompt="$weight"
        done
        adapted adapter_rate validation rate_{1e-5,1e-4,1e-3} weight_{1e-3,1e-2}
        ;;
    adapter_layers)
        for block in 0 7 15 22 29; do
            adapter "block_$block" --config.vectors.layers="(0,7,15,22,29)" \
                --config.vectors.layer="$block"
        done
        adapter block_minilm --config.vectors.path=builtin:minilm
        adapted adapter_layers test block_{0,7,15,22,29,minilm}
        ;;
    adapter_eta)
        for eta in 1e-5 0.01 0.1 0.5 1; do
            adapter "eta_$eta" --config.adapter.eta="$eta"
        done
        for init in kaiming normal uniform; do
            adapter "init_$init" --config.adapter.init="$init"
        done
        adapted adapter_eta test eta_{1e-5,0.01,0.1,0.5,1} init_{kaiming,normal,uniform}
        ;;
    curation)
        # A noisy pool, the funnel over it, and three ways to tune: configs/claims/curation.toml.
        # COUNT images (default 900); STOP=funnel stops before the training.
        part "noisy pool"
        emu-jax data pool emoji/fluent --select="part == tuned" --data_dir="$EMU_JAX_DATA" \
            --out="$runs/curation/pool" --count="${COUNT:-900}" --share=0.08
        curate curation needles labels=yes
        if [[ "${STOP:-}" != funnel ]]; then
            count="import sys; from emu_jax.data.source import open_source as o; "
            count="$(python -c "$count print(len(o('curated/needles', sys.argv[1])))" "$EMU_JAX_DATA")"
            curate curation random choose=sample,labels=yes --config.steps.sample.count="$count"
            curate curation all choose=sample,labels=yes --config.steps.sample.count=1000000
            for name in needles random all; do
                tuned "curation_$name" "curated/$name" ""
            done
            claimed curation "$pretrained" "$runs"/curation_{needles,random,all}_{0,1,2}
        fi
        ;;
    curation_captions)
        # Captions true, 30 % of another thing, or the group's word:
        # configs/claims/curation_captions.toml
        part "pool with wrong captions"
        emu-jax data pool emoji/fluent --select="needle >= 0" --data_dir="$EMU_JAX_DATA" \
            --out="$runs/curation_captions/pool" --count=900 --share=0.3 --faults="wrong caption"
        curate curation_captions wrong choose=sample --config.steps.sample.count=1000000
        tuned captions_true emoji/fluent "needle >= 0"
        tuned captions_wrong curated/wrong ""
        tuned captions_vague emoji/fluent "needle >= 0" --config.data.train.needles.captions=group
        claimed curation_captions "$pretrained" "$runs"/captions_{true,wrong,vague}_{0,1,2}
        ;;
    rewards | decoupled | finish_preference | four_steps | style | structure | active_prompts | transfer)
        source launch/study_feedback.sh
        "table_$1"
        ;;
    *)
        sed -n '2,7p' "${BASH_SOURCE[0]}" | cut -c3- >&2
        exit 2
        ;;
esac
parts
