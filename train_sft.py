"""Fine-tune a language model to label financial text: rank-stabilised LoRA and NEFTune through TRL's SFTTrainer.

    python train_sft.py data/sentiment.yaml configs/qwen3-8b.yaml [overlay.yaml ...] [--learning_rate 1e-4 ...]

After arXiv 2512.00630. A run is YAML layered left to right, then flags, with the Hugging Face names (see configs/).
"""

from pathlib import Path

from fintune import audit, machine, runs, tracking
from fintune.checkpoints import KeepCheckpoints, checkpoint_to_resume, claim, interruptible
from fintune.data import load_data
from fintune.errors import run
from fintune.prompt import Prompt
from fintune.recipe import RunArguments, parse_recipe
from fintune.tiny import TINY, build_tiny
from fintune.trainer import OneLine, OneLineTrainer
from fintune.watch import Watch, memory_advice

from trl import ModelConfig, SFTConfig, SFTTrainer


def main(argv: list[str]) -> None:
    recipe = parse_recipe(argv, RunArguments, SFTConfig, ModelConfig)
    task, (run_args, training_args, model_args) = recipe.task, recipe.args
    folder, base = Path(training_args.output_dir), model_args.model_name_or_path
    machine.check_fits(base, run_args.min_gpu_gib, training_args.use_cpu)
    machine.check_one_gpu(training_args.n_gpu)

    # Rows, and the one function that turns them into token ids
    with training_args.main_process_first():  # of several (accelerate launch) one downloads and builds
        data = load_data(task, allow_sample=base == TINY)
        if base == TINY:
            claim(folder, training_args.process_index)
            base = build_tiny(folder / "staging/base", task, data.splits["train"]["text"], run_args, training_args)
    if data.source == "sample":
        training_args.num_train_epochs = run_args.sample_epochs or training_args.num_train_epochs
    tokenizer = runs.load_tokenizer(base, model_args.model_revision, training_args.chat_template_path)
    prompt = Prompt(task, tokenizer, training_args.max_length)
    train_dataset = prompt.training_rows(data.splits["train"], data.class_weights(task))
    eval_dataset = prompt.training_rows(data.splits["validation"])
    print(*audit.lines(audit.audit(task, data)), sep="\n")
    audit.check_leakage(task, data)
    print(f"data: {data.summary()}, {prompt.cut_texts} texts cut to {training_args.max_length} tokens")
    print(f"one row, its trained tokens in ⟦⟧:\n{prompt.show(train_dataset[0])}")

    claim(folder, training_args.process_index)
    tracking.prepare(recipe, training_args)

    # The method: SFTTrainer adds NEFTune's noise (neftune_noise_alpha), PEFT the adapter, scaled by alpha / sqrt(r)
    training_args.dataset_kwargs = {"skip_prepare_dataset": True}  # rows are ready: nothing to render, cut or drop
    collator = OneLine.of(run_args.batching, train_dataset, eval_dataset)
    trainer = (OneLineTrainer if collator else SFTTrainer)(
        model=runs.load_model(model_args, base, training_args.device, run_args.key_value_heads),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        processing_class=tokenizer,
        peft_config=runs.peft_config(model_args),
    )
    keeper = KeepCheckpoints(recipe.stated | {"data": data.sha256, "one row": prompt.show(train_dataset[0])})
    trainer.add_callback(keeper)
    trainer.add_callback(runs.ScoreValidation(trainer, prompt, data))
    trainer.add_callback(Watch(trainer, prompt, data))
    summary = runs.model_summary(trainer.model, base, model_args)
    machine.check_disk(folder, summary["trained_parameters"], training_args.save_total_limit)
    print(f"trains {summary['trained_parameters']:,} parameters in {summary['trained_dtype']}")
    with training_args.main_process_first():
        checkpoint = checkpoint_to_resume(folder, training_args.resume_from_checkpoint, keeper.recipe)
    with interruptible(trainer, keeper), memory_advice(training_args, model_args.load_in_4bit):
        output = trainer.train(checkpoint)
    model = runs.whole_model(trainer, base, model_args, run_args.key_value_heads)
    if training_args.process_index > 0:  # one is enough from here on
        return

    # The score: exact probabilities of whole labels on the test split, set beside the paper's figure
    calibration = runs.calibrate_model(data, prompt, model)
    metrics, predictions = runs.evaluate_model(task, data, prompt, model, calibration["temperature"])
    training = {**output.metrics, "updates": output.global_step, "resumed_from": checkpoint}
    training["log"] = trainer.state.log_history
    result = runs.make_result(recipe, data, metrics, model=summary, training=training, calibration=calibration)
    runs.save_run(folder, recipe, result, predictions, model, tokenizer)
    runs.print_result(result)
    tracking.log_result(recipe, training_args, result, predictions)


if __name__ == "__main__":
    run(main)
