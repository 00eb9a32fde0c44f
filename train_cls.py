"""Fine-tune an encoder (BERT, RoBERTa, ModernBERT, T5, ...) to label financial text: the baselines, by HF's Trainer.

    python train_cls.py data/sentiment.yaml configs/baselines/bert-base.yaml [overlay.yaml ...] [--seed 1 ...]

The sibling of train_sft.py: same rows, splits, metrics and files. The epoch that is best on validation is kept.
"""

from pathlib import Path

from fintune import audit, classifier, machine, runs, tracking
from fintune.checkpoints import KeepCheckpoints, checkpoint_to_resume, claim, interruptible
from fintune.classifier import ClassifierArguments, ClassifierTrainer, PlainText
from fintune.data import load_data
from fintune.errors import run
from fintune.recipe import parse_recipe
from fintune.watch import Watch, memory_advice

from transformers import DataCollatorWithPadding, EarlyStoppingCallback, TrainingArguments


def main(argv: list[str]) -> None:
    recipe = parse_recipe(argv, ClassifierArguments, TrainingArguments)
    task, (model_args, training_args) = recipe.task, recipe.args
    folder, base = Path(training_args.output_dir), model_args.model_name_or_path
    machine.check_fits(base, model_args.min_gpu_gib, training_args.use_cpu)
    machine.check_one_gpu(training_args.n_gpu)

    # Rows, and the one function that turns them into token ids
    with training_args.main_process_first():  # of several (accelerate launch) one downloads
        data = load_data(task, allow_sample=Path(base).is_dir())
    tokenizer = runs.load_tokenizer(base, model_args.model_revision, None)
    classifier.check_tokenizer(tokenizer, base, model_args.model_revision, data.splits["train"]["text"])
    model = classifier.load_classifier(model_args, base, task, training_args.device, training_args.seed)
    prompt = PlainText(tokenizer, model.config, model_args.max_length)
    train_dataset = prompt.training_rows(data.splits["train"])
    eval_dataset = prompt.training_rows(data.splits["validation"])
    print(*audit.lines(audit.audit(task, data)), sep="\n")
    audit.check_leakage(task, data)
    print(f"data: {data.summary()}, {prompt.cut_texts} texts cut to {model_args.max_length} tokens")
    print(f"one row:\n{prompt.show(train_dataset[0])} -> {task.names[train_dataset[0]['labels']]}")

    claim(folder, training_args.process_index)
    tracking.prepare(recipe, training_args)

    # The method: cross-entropy on the label, every weight trained, until validation accuracy stops rising
    trainer = ClassifierTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_loss_func=classifier.loss_of(data.class_weights(task), training_args.label_smoothing_factor),
        compute_metrics=classifier.accuracy,
        preprocess_logits_for_metrics=classifier.label_logits,
    )
    keeper = KeepCheckpoints(recipe.stated | {"data": data.sha256, "one row": prompt.show(train_dataset[0])})
    trainer.add_callback(keeper)
    trainer.add_callback(Watch(trainer))
    trainer.add_callback(EarlyStoppingCallback(model_args.early_stopping_patience))
    summary = runs.model_summary(trainer.model, base, model_args)
    machine.check_disk(folder, summary["trained_parameters"], training_args.save_total_limit)
    print(f"trains {summary['trained_parameters']:,} parameters in {summary['trained_dtype']}")
    with training_args.main_process_first():
        checkpoint = checkpoint_to_resume(folder, training_args.resume_from_checkpoint, keeper.recipe)
    with interruptible(trainer, keeper), memory_advice(training_args):
        output = trainer.train(checkpoint)
    if training_args.process_index > 0:  # one is enough from here on
        return

    # The score: probabilities of the labels on the test split, set beside the paper's figure
    calibration = classifier.calibrate_classifier(data, prompt, trainer.model)
    temperature = calibration["temperature"]
    metrics, predictions = classifier.evaluate_classifier(task, data, prompt, trainer.model, temperature)
    training = {**output.metrics, "updates": output.global_step, "resumed_from": checkpoint}
    training["log"] = trainer.state.log_history
    training |= {"best_update": trainer.state.best_global_step, "best_eval_accuracy": trainer.state.best_metric}
    result = runs.make_result(recipe, data, metrics, model=summary, training=training, calibration=calibration)
    runs.save_run(folder, recipe, result, predictions, trainer.model, tokenizer)
    runs.print_result(result)
    tracking.log_result(recipe, training_args, result, predictions)


if __name__ == "__main__":
    run(main)
