# shellcheck shell=bash
# Tables of feedback learning, sourced by study.sh: table_NAME computes the table NAME. Gates and
# claims are in configs/claims/NAME.toml. A run and a data set that several tables use is made once.
#
# STEPS=2 ends every training after two steps and caches no images: it shows that each arm runs, and
# decides nothing.
# Where the font Noto Color Emoji is missing, STYLE=fluent trains the judge of faults on Fluent, and
# FINISHES=five leaves Noto out of the finishes.

: "${runs:?is set by study.sh}" "${pretrained:?is set by study.sh}"
export EMU_JAX_WEIGHTS="$ROOT/$runs/weights"  # of the judges of faults and of finishes
dimensions=(color layout lighting detail)
things="group == animals-nature|food-drink|objects|travel-places|activities"
faults="fault_color,fault_layout,fault_lighting,fault_detail,fault_mean,fault_worst"
distances="palette_distance,placement_distance,luma_distance,detail_distance"

brief=()
[[ -n "${STEPS:-}" ]] && brief=(--config.train.steps="$STEPS" --config.data.cache_latents=False)

# learn NAME CONFIG [--config...]: a training run, once.
learn() {
    local name="$1" config="$2"; shift 2
    part "$name"
    emu-jax train --config="configs/$config" --workdir="$runs/$name" \
        --config.data.data_dir="$EMU_JAX_DATA" "$@" "${brief[@]}"
}

build() {
    local name
    for name in "$@"; do
        part "$name"
        emu-jax data build "$name" --data_dir="$EMU_JAX_DATA"
    done
}

# each_seed FUNCTION NAME [...]: NAME_0, NAME_1 and NAME_2. Only the first has validations, which
# draw the curves of the report.
each_seed() {
    local function="$1" name="$2" seed; shift 2
    "$function" "${name}_0" "$@"
    for seed in 1 2; do
        "$function" "${name}_$seed" "$@" --config.train.seed="$seed" --config.train.validate_every=0
    done
}

# A generator with faults, and the judge of faults, of another style and seed.
faulty_generator() {
    build faulty/openmoji faulty/fluent
    learn faulty latent_diffusion.py:size=tiny,stage=faulty --config.measure.judge=
}

fault_judge() {
    local style="${STYLE:-noto}"
    build "faulty/$style"
    learn tagger_faults "tagger.py:size=tiny,words=faults,style=$style"
    emu-jax export "$runs/tagger_faults" --out="$EMU_JAX_WEIGHTS/faults" --dtype=float32
}

# on_images NAME INIT STEPS [--config...]: more of the generator's own training, on clean drawings of
# concepts that are not judged.
on_images() {
    local name="$1" init="$2" steps="$3" style; shift 3
    local -a sources=()
    for style in openmoji fluent; do
        sources+=("--config.data.train.$style.select=part == tuned and group != flags|brands|extras|signs")
    done
    learn "$name" latent_diffusion.py:size=tiny --config.init_from="$init" \
        "${sources[@]}" --config.measure.judge= --config.train.steps="$steps" \
        --config.train.batch_size=16 --config.train.validate_every=0 \
        --config.groups.generator.optimizer.learning_rate=1e-4 \
        --config.groups.generator.optimizer.schedule=constant "$@"
}

# aesthetic NAME TEACHER [--config...]: feedback by rewards from F, from prompts alone.
aesthetic() {
    local name="$1" teacher="$2"; shift 2
    # shellcheck disable=SC2046  # one word for each option
    learn "$name" "feedback.py:size=tiny,stage=aesthetic,data=emoji,teacher=$teacher" \
        --config.init_from="$runs/faulty" --config.feedback.diffusion=0 \
        $(reward_paths "$teacher") --config.measure.count=32 \
        --config.measure.metrics="('${faults//,/\',\'}')" --config.train.preview_every=250 "$@"
}

# reward_paths TEACHER: where the rewards of a teacher are.
reward_paths() {
    local name
    if [[ "$1" == global ]]; then
        echo "--config.teachers.reward_global.path=$runs/reward_global"
        return
    fi
    for name in "${dimensions[@]}"; do
        if [[ "$1" == each || "$1" == "$name" ]]; then
            echo "--config.teachers.reward_$name.path=$runs/reward_separate"
            echo "--config.teachers.reward_$name.dimension=$name"
        fi
    done
}

# judge TABLE MODEL... [--option]: kept concepts in the style of pre-training, two images each.
judge() {
    local table="$1"; shift
    compare "$table" "$@" --captions="emoji/openmoji:part == kept and $things" \
        --needles="emoji/fluent:needle >= 0" --kept= --judge=builtin:judge_64 --images_per_prompt=2
}

claims() {
    local table="$1"; shift
    part "$table: claims"
    emu-jax claims "configs/claims/$table.toml" "$@" --out="$runs/$table/claims"
}

table_rewards() {
    build preferences/openmoji preferences/fluent
    learn reward_separate reward.py:size=tiny,dimension=separate
    learn reward_global reward.py:size=tiny,dimension=global
    part rewards
    emu-jax rewards "$runs/reward_separate" "$runs/reward_global" --select="split == test" \
        --data_dir="$EMU_JAX_DATA" --out="$runs/rewards"
    claims rewards "$runs/rewards/rewards.json"
}

# Faults mended by rewards, from prompts alone: one for each dimension, or one of all preferences.
table_decoupled() {
    local name scale
    local -a arms=()
    faulty_generator
    fault_judge
    table_rewards
    on_images clean "$runs/faulty" 500
    each_seed aesthetic decoupled_each each
    each_seed aesthetic decoupled_global global
    for name in "${dimensions[@]}"; do
        aesthetic "decoupled_$name" "$name"
        arms+=("$runs/decoupled_$name")
    done
    for scale in 0.3 2; do
        # shellcheck disable=SC2046
        aesthetic "decoupled_alpha_$scale" each \
            $(printf -- "--config.teachers.reward_%s.alpha_scale=$scale " "${dimensions[@]}")
        arms+=("$runs/decoupled_alpha_$scale")
    done
    judge decoupled "$pretrained" "$runs"/{faulty,clean} \
        "$runs"/decoupled_{each,global}_{0,1,2} "${arms[@]}" \
        --metrics="$faults,$distances,contrast,sharpness,colorfulness"
    claims decoupled "$runs/decoupled/compare.json"
}

# adversarial NAME TEACHER STEPS [--config...]: a reward learns with the generator, at all noise
# levels and without guidance; from the generator under BASE.
adversarial() {
    local name="$1" teacher="$2" steps="$3"; shift 3
    # shellcheck disable=SC2046
    learn "$name" "feedback.py:size=tiny,stage=adversarial,data=emoji,teacher=$teacher" \
        --config.init_from="$runs/four_base" --config.feedback.diffusion=0 \
        $([[ "$teacher" == adversary ]] || reward_paths "$teacher") \
        --config.teachers.adversary.path="$runs/reward_separate" \
        --config.teachers.adversary.dimension=detail --config.train.steps="$steps" \
        --config.train.validate_every=200 --config.measure.count=32 \
        --config.train.preview_every=400 "$@"
}

frozen() {
    adversarial "$1" adversary 800 --config.groups.discriminator.optimizer.learning_rate=0 "${@:2}"
}

alone() {
    adversarial "$1" adversary 800 "${@:2}"
}

# drawn TABLE SAMPLER STEPS SCALE MODEL...: 200 kept concepts, two images each; not drawn twice.
drawn() {
    local table="$1" sampler="$2" steps="$3" scale="$4"; shift 4
    local place="$table/${sampler}_${steps}_$scale"
    records+=("$runs/$place/compare.json")
    if [[ ! -e "${records[-1]}" ]]; then
        judge "$place" "$@" --count="${COUNT:-200}" --sampler="$sampler" --steps="$steps" \
            --guidance_scale="$scale" --label="$sampler $steps, scale $scale"
    fi
}

# Few sampling steps. BASE is the generator, by default the shipped one; STOP=gate stops before the
# training.
table_four_steps() {
    local steps scale seed
    local -a records=() models=()
    faulty_generator
    for steps in 4 20; do
        drawn four_steps_gate ddim "$steps" 2.5 "$pretrained" "$runs/faulty"
    done
    drawn four_steps_gate dpmpp_2m 4 2.5 "$pretrained" "$runs/faulty"
    claims four_steps_gate "${records[@]}"
    [[ "${STOP:-}" == gate ]] && return
    table_rewards
    part four_base
    emu-jax export "${BASE:-$pretrained}" --out="$runs/four_base" --dtype=float32
    each_seed alone four_adversary
    each_seed frozen four_frozen
    on_images four_images "$runs/four_base" 800
    adversarial four_aesthetic each 800
    learn reward_fresh reward.py:size=tiny,dimension=detail --config.train.steps=1 \
        --config.groups.reward.optimizer.learning_rate=0 --config.train.validate_every=0
    adversarial four_fresh adversary 800 --config.teachers.adversary.dimension= \
        --config.teachers.adversary.path="$runs/reward_fresh"
    adversarial four_phase adversary 400
    adversarial four_phases adversary 400 --config.init_from="$runs/four_phase" \
        --config.teachers.adversary.trajectory.sampling.steps=8 \
        --config.teachers.adversary.trajectory.earliest=8
    models=("$runs"/four_{base,images,aesthetic,fresh,phases})
    for seed in 0 1 2; do
        models+=("$runs"/four_{adversary,frozen}_"$seed")
    done
    records=()
    for scale in 1 2.5; do
        for steps in 1 2 4 8 20; do
            drawn four_steps ddim "$steps" "$scale" "${models[@]}"
        done
        drawn four_steps dpmpp_2m 4 "$scale" "$runs/four_base"
    done
    claims four_steps "${records[@]}"
}

# A finish as one preference: a reward of Fluent over OpenMoji, the pairs themselves, or the images.
table_finish_preference() {
    local -a short=(--config.train.steps=500 --config.train.batch_size=16 --config.measure.judge=)
    build finishes/preference
    learn reward_finish reward.py:size=tiny,dimension=global,pairs=finish
    learn finish_reward feedback.py:size=tiny,stage=aesthetic,data=emoji,teacher=global \
        --config.init_from="$pretrained" --config.feedback.diffusion=0 \
        --config.teachers.reward_global.path="$runs/reward_finish" --config.measure.count=32
    learn finish_pairs dpo.py:size=tiny,pairs=finish "${short[@]}" --config.train.validate_every=250
    learn finish_images latent_diffusion.py:size=tiny,stage=quality_tune "${short[@]}" \
        --config.train.validate_every=250
    compare finish_preference "$pretrained" "$runs"/finish_{reward,pairs,images} \
        --images_per_prompt=2 --metrics=contrast,sharpness,colorfulness
    claims finish_preference "$runs/finish_preference/compare.json"
}

# on_finishes NAME TEACHER [--config...]: feedback by Gram matrices from the generator of finishes.
on_finishes() {
    local name="$1" path="$2"; shift 2
    learn "$name" feedback.py:size=tiny,stage=perceptual,teacher=style,data=finishes \
        --config.init_from="$runs/finishes" --config.teachers.style.path="$path" \
        --config.data.train.named.dataset="finishes/${FINISHES:-six}" \
        --config.measure.count=32 "$@"
}

# The generator's own training on the same images, as long.
images_of_finishes() {
    local name="$1"; shift
    learn "$name" latent_diffusion.py:size=tiny,stage=finishes \
        --config.init_from="$runs/finishes" --config.data.train.plain.captions=named \
        --config.data.train.plain.dataset="finishes/${FINISHES:-six}" \
        --config.data.train.named.dataset="finishes/${FINISHES:-six}" \
        --config.train.steps=600 --config.train.batch_size=16 --config.measure.judge= \
        --config.groups.generator.optimizer.learning_rate=1e-4 \
        --config.groups.generator.optimizer.schedule=constant "$@"
}

# Finishes that captions name: do Gram matrices teach them, and those of VGG-16 best?
table_style() {
    local set="finishes/${FINISHES:-six}" seed
    local -a words=() models=("$runs/finishes")
    [[ "$set" == finishes/five ]] &&
        words=(--config.tags.words="('openmoji','fluent','lineless','pixels','pencil')")
    build "$set"
    learn finishes latent_diffusion.py:size=tiny,stage=finishes --config.measure.judge= \
        --config.data.train.plain.dataset="$set" --config.data.train.named.dataset="$set"
    learn tagger_finishes tagger.py:size=tiny,words=finish "${words[@]}" \
        --config.data.train.drawn.dataset="$set" \
        --config.data.validation.unseen.drawn.dataset="$set"
    emu-jax export "$runs/tagger_finishes" --out="$EMU_JAX_WEIGHTS/finishes" --dtype=float32
    each_seed images_of_finishes style_images
    each_seed on_finishes style_gram ""
    each_seed on_finishes style_random random
    for seed in 0 1 2; do
        models+=("$runs"/style_{images,gram,random}_"$seed")
    done
    compare style "${models[@]}" --judge= --metrics=finish_asked,contrast \
        --prompts="$set:part == kept and $things" --prompt_column=named --by=finish \
        --count_each=15 --images_per_prompt=8
    claims style "$runs/style/compare.json"
    judge style_kept "${models[@]}"
    claims style_kept "$runs/style_kept/compare.json"
}

# Structure, from a generator of scenes (SCENES, by default the shipped one). The parser that teaches
# has another seed than the one that judges.
structured() {
    local name="$1" weight="$2"; shift 2
    learn "$name" feedback.py:size=tiny,stage=perceptual,teacher=structure \
        --config.init_from="$runs/structure_base" \
        --config.teachers.structure.path="$runs/parser_1" \
        --config.teachers.structure.weight="$weight" --config.measure.count=32 "$@"
}

images_of_scenes() {
    local name="$1"; shift
    structured "$name" 0 "$@"
}

table_structure() {
    local weight seed
    local -a models=()
    build scenes/openmoji scenes/fluent
    part structure_base
    emu-jax export "${SCENES:-$scenes}" --out="$runs/structure_base" --dtype=float32
    learn parser_1 parser.py:size=tiny --config.train.seed=1
    each_seed images_of_scenes structure_images
    each_seed structured structure_0.1 0.1
    for weight in 0.01 1; do
        structured "structure_$weight" "$weight"
    done
    structured structure_alone 0.1 --config.feedback.diffusion=0
    structured structure_index 0.1 --config.feedback.log_snr=0
    for seed in 0 1 2; do
        models+=("$runs"/structure_{images,0.1}_"$seed")
    done
    compare structure "$runs"/structure_{base,0.01,1,alone,index} "${models[@]}" --judge= \
        --prompts="scenes/openmoji:split == test and kind == two" --prompt_column=complex \
        --count="${COUNT:-200}" --images_per_prompt=2 --guidance_scale=1.5
    claims structure "$runs/structure/compare.json"
}

# from_prompts NAME SET [--config...]: four rewards, from the prompts of a set alone.
from_prompts() {
    local name="$1" set="$2" style; shift 2
    local -a sources=()
    for style in openmoji fluent; do
        sources+=("--config.data.train.$style.dataset=prompts/$set"
            "--config.data.train.$style.select=")
    done
    aesthetic "$name" each "${sources[@]}" "$@"
}

# Do rewards teach more from 500 prompts that differ than from 500 at random?
table_active_prompts() {
    local name seed
    local -a models=("$runs/faulty") pool=("emoji/openmoji:part == tuned" "emoji/fluent:part == tuned")
    faulty_generator
    fault_judge
    table_rewards
    build scenes/openmoji
    pool+=("scenes/openmoji:split == train")
    part "active prompts"
    emu-jax data prompts "${pool[@]}" --data_dir="$EMU_JAX_DATA" --count=500 \
        --out="$runs/prompts/active.tsv"
    emu-jax data prompts "${pool[@]}" --data_dir="$EMU_JAX_DATA" --count=500 --least=0 \
        --similarity=1 --out="$runs/prompts/random.tsv"
    for name in active random; do
        emu-jax data build "prompts/$name" --path="$runs/prompts/$name.tsv" \
            --data_dir="$EMU_JAX_DATA"
        each_seed from_prompts "prompts_$name" "$name"
        for seed in 0 1 2; do
            models+=("$runs/prompts_${name}_$seed")
        done
    done
    judge active_prompts "${models[@]}" --count=200 --metrics="$faults,$distances"
    claims active_prompts "$runs/active_prompts/compare.json"
}

# A LoRA of one finish, made for the generator before feedback, over those after it.
table_transfer() {
    local steps lora="$runs/transfer.safetensors"
    local -a records=()
    table_decoupled
    table_four_steps
    learn transfer latent_diffusion.py:size=tiny,stage=quality_tune --config.measure.judge= \
        --config.lora.rank=8 --config.groups.generator.optimizer.learning_rate=1e-3
    emu-jax export "$runs/transfer" --adapter --out="$lora"
    for steps in 4 20; do
        records+=("$runs/transfer_$steps/compare.json")
        compare "transfer_$steps" "$pretrained" "$runs"/{decoupled_each_0,four_adversary_0} \
            --adapter="$lora" --sampler=ddim --steps="$steps" --label="$steps steps" \
            --images_per_prompt=2
    done
    claims transfer "${records[@]}"
}
