"""Fine-tune a language model to label financial text: rank-stabilised LoRA and NEFTune through TRL's SFTTrainer.

    python train_sft.py data/sentiment.yaml configs/qwen3-8b.yaml [overlay.yaml ...] [--learning_rate 1e-4 ...]

After arXiv 2512.00630. A run is YAML layered left to right, then flags, with the Hugging Face names (see configs/).
"""

import fintune.interrupt  # noqa: F401  before what takes seconds to load

# isort: split
from trl import ModelConfig, SFTConfig

from fintune.data.load import inputs_of, load_data
from fintune.errors import run
from fintune.model.adapter import new_adapter
from fintune.model.load import load_model, load_tokenizer, model_summary, tokenizer_keys, whole_model
from fintune.model.plain import check_longest
from fintune.model.prompt import Prompt
from fintune.model.tiny import build_tiny
from fintune.model.wheel import find_model
from fintune.recipe.layers import TINY
from fintune.recipe.recipe import SftArguments, parse_recipe
from fintune.results.folder import make_result, save_run
from fintune.results.summary import print_result
from fintune.scoring.label_scorer import LabelScorer
from fintune.scoring.scorer import calibrate, evaluate
from fintune.training import session, tracking
from fintune.training.callbacks import CurveWatch, ScoreValidation
from fintune.training.checkpoints import lock_folder
from fintune.training.own_forward import choose_trainer
from fintune.training.shared_prefix import SharedPrefixCollator


def main(argv: list[str]) -> None:
    recipe = parse_recipe(argv, SftArguments, SFTConfig, ModelConfig, script="train_sft.py")
    task, run_args, training_args, model_args = recipe.task, recipe.run_args, recipe.training_args, recipe.model_args
    session.check_machine(recipe, model_args.model_name_or_path)

    # Rows, and the one function that turns them into token ids
    with training_args.main_process_first():  # of several (accelerate launch) one downloads and builds
        base, recipe.weights = find_model(model_args.model_name_or_path, model_args.model_revision, run_args.wheel)
        data = load_data(task, allow_sample=base == TINY)
        if base == TINY:
            lock_folder(recipe.folder, training_args.process_index)
            base = build_tiny(
                recipe.folder / "staging/base", task, inputs_of(data.splits["train"]), run_args, training_args
            )
    begun = session.begun(recipe)
    tokenizer = load_tokenizer(base, model_args.model_revision, **tokenizer_keys(training_args), begun=begun)
    prompt = Prompt(task, tokenizer, training_args.max_length)
    train_dataset = prompt.training_rows(data.splits["train"], data.class_weights(task))
    eval_dataset = prompt.training_rows(data.splits["validation"])
    session.start(recipe, data, prompt.describe(train_dataset[0]))

    # The method: SFTTrainer adds NEFTune's noise (neftune_noise_alpha), PEFT the adapter, scaled by alpha / sqrt(r)
    training_args.dataset_kwargs = {"skip_prepare_dataset": True}  # rows are ready: nothing to render or drop
    training_args.chat_template_path = None  # the tokenizer has it
    collator = SharedPrefixCollator.of(run_args.batching, train_dataset, eval_dataset)
    model = load_model(model_args, base, training_args.device, run_args.key_value_heads)
    model = new_adapter(model, model_args, training_args)
    check_longest(model, train_dataset[0]["input_ids"], training_args.max_length, use_cache=False)
    LabelScorer(model, prompt).check(inputs_of(data.splits["validation"]))  # a misfit is known before an epoch
    router = training_args.router_aux_loss_coef
    trainer_class, collator = choose_trainer(collator, model, train_dataset, eval_dataset, router_aux_loss_coef=router)
    trainer = trainer_class(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        processing_class=tokenizer,
    )
    trainer.add_callback(ScoreValidation(trainer, prompt, data))
    trainer.add_callback(CurveWatch(trainer, prompt, data))
    name, revision = model_args.model_name_or_path, model_args.model_revision
    summary = model_summary(trainer.model, name, base, revision, recipe.weights)
    training = session.train(trainer, recipe, data, summary)
    model = whole_model(trainer, base, model_args, run_args.key_value_heads)
    if training_args.process_index > 0:  # one is enough from here on
        return

    # The score: exact probabilities of whole labels on the test split, beside the paper's figure
    scorer = LabelScorer(model, prompt)
    calibration = calibrate(scorer, data)
    metrics, predictions = evaluate(scorer, task, data, calibration["temperature"])
    result = make_result(recipe, data, metrics, model=summary, training=training, calibration=calibration)
    save_run(recipe, result, predictions, scorer)
    print_result(result, recipe.folder)
    tracking.log_result(recipe, result, predictions, trainer)


if __name__ == "__main__":
    run(main)
