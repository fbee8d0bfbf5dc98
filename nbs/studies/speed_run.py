"""Train some steps in one of the ways that `speed.ipynb` compares; print a line of JSON.

    python nbs/studies/speed_run.py WAY --model MODEL --blocks FOLDER

A process runs one way, so that its peak memory is its own. Blocks are from `pack`, saved with
`save_to_disk`. Every way trains the same parameters on the same blocks in the same order, by Adam
at one rate. `machine` measures large products instead. TRL's ways need pip install
'alpaca_ft[compare]'. For another allocator, start it with LD_PRELOAD.
"""
import argparse, json, math, os, platform, resource, tempfile, time
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault('HF_HUB_OFFLINE', '1')
import datasets, torch, transformers
from torch.nn.functional import cross_entropy

from alpaca_ft import loop
from alpaca_ft.config import Config
from alpaca_ft.data import get_dls
from alpaca_ft.freeze import freeze, load_model
from alpaca_ft.tools import folding
from alpaca_ft.tools.attention import attend_per_document
from alpaca_ft.tools.head import spare_last_layer
from alpaca_ft.tools.load import put_away
from alpaca_ft.tools.trunk import cache_trunk, split_trunk

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
ADAM = dict(lr=2e-4, betas=(.9, .99), eps=1e-5)
RESTING = -100  # the label of a place without a target


# What is measured
class Clock:
    "Seconds of the processor and of the wall between ticks."
    def __init__(self): self.cpu, self.wall = [], []
    def tick(self, *args, **kwargs):
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())
    def seconds(self):
        def between(ticks): return [round(b - a, 5) for a, b in zip(ticks, ticks[1:])]
        return dict(cpu=between(self.cpu), wall=between(self.wall))


def allocator():
    "Who gives out memory in this process."
    maps = Path('/proc/self/maps')
    loaded = maps.read_text() if maps.exists() else ''
    return next((name for name in ('tcmalloc', 'jemalloc') if name in loaded), "the system's")


def processor():
    "The processor's name, as the system tells it."
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def rate(dtype, n=2048, times=3):
    "Operations a second of the processor in a large product."
    a, best = torch.ones(n, n, dtype=dtype), math.inf
    for _ in range(times):
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
    return round(2*n**3/best)


def peak_bytes(): return 1024*resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# The article's loop
def run_article(model, blocks, args, checkpointing=False):
    "A loop after the article's: logits for every place, and two losses from them."
    if checkpointing: model.gradient_checkpointing_enable()
    opt = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], **ADAM)
    clock, losses = Clock(), []
    model.train()
    clock.tick()
    for xb in get_dls(blocks, blocks, args.bs)[1]:
        logits = model(**{k: xb[k] for k in ('input_ids', 'position_ids', 'labels')}).logits
        loss = cross_entropy(logits.flatten(0, 1), xb['labels'].flatten())
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
        clock.tick()
    return clock.seconds() | dict(losses=losses)


# Ours
def full_logits(h, w, y, chunk):
    "The head as it is usually written: all logits at once, then the loss."
    logits = h @ w.T
    return cross_entropy(logits.float(), y, reduction='sum'), (logits.argmax(1) == y).sum()


def run_trunk(model, blocks, args, folder):
    """Run the frozen layers over all blocks, and put their weights away.

    `passes` are the seconds from one batch to the next; what is done once for any number of blocks
    (digests of weights and blocks, the test that the halves give what the whole gives) is not in
    them, but in `whole_pass`."""
    each, whole = Clock(), Clock()
    hook = model.model.layers[args.n_freeze - 1].register_forward_hook(each.tick)
    whole.tick()
    blocks = cache_trunk(model, blocks, args.n_freeze, f'{folder}/trunk', args.bs, args.precision,
                         progress=False)
    whole.tick()
    hook.remove()
    put_away(model, args.n_freeze)
    n_batches = len(blocks)//args.bs
    passes = {kind: ticks[1 - n_batches:] for kind, ticks in each.seconds().items()}
    return blocks, dict(passes=passes, whole_pass=whole.seconds())


def run_fit(model, blocks, args, folded=False, **how):
    "`fit`, with what is asked for."
    if folded: return train(spare_last_layer(model), blocks, args, **how)
    with patch.object(folding, 'fold', lambda *args: None):
        return train(model, blocks, args, **how)


def train(model, blocks, args, per_document=False, fused=False, trunk=False):
    "Train by `fit`; the pass of a trunk counts apart, since epochs share it."
    cfg = Config(precision=args.precision, batch_size=args.bs, gradient_accumulation_steps=1,
                 epochs=1, lr=ADAM['lr'], mom=ADAM['betas'][0], sqr_mom=ADAM['betas'][1],
                 eps=ADAM['eps'], warmup=0., max_grad_norm=None, n_freeze=args.n_freeze)
    if per_document: attend_per_document(model)
    clock, folder, more = Clock(), tempfile.TemporaryDirectory(), {}
    if trunk:
        blocks, more = run_trunk(model, blocks, args, folder.name)
        model = split_trunk(model, args.n_freeze)[1]
    head = loop.head_loss if fused else full_logits
    batches = list(get_dls(blocks, blocks, args.bs)[1])
    with (patch.object(loop, 'lr_factor', lambda *args: 1.), patch.object(loop, 'head_loss', head),
          patch.object(loop, 'log_step', clock.tick)):
        clock.tick()
        history = loop.fit(model, batches, cfg, progress=False)
    folder.cleanup()
    return clock.seconds() | dict(losses=[record['loss'] for record in history]) | more


# TRL
def rows_for_trl(blocks):
    "The same documents, as TRL's packing by best fit hands them to its collator."
    for block in blocks:
        starts = [i for i, p in enumerate(block['position_ids']) if p == 0]
        ends = starts[1:] + [len(block['labels'])]
        if all(y == RESTING for y in block['labels'][starts[-1]:]): ends.pop()  # padding
        yield dict(input_ids=block['input_ids'][:ends[-1]],
                   labels=[RESTING, *block['labels'][:ends[-1] - 1]],
                   seq_lengths=[end - start for start, end in zip(starts, ends)])


def trl_config(folder, args, n_steps, checkpointing, together):
    "TRL's configuration: the same steps, and nothing beside them."
    from trl import SFTConfig
    return SFTConfig(
        output_dir=folder, max_length=args.max_seq_len, packing=True, packing_strategy='bfd',
        dataset_kwargs=dict(skip_prepare_dataset=True), max_steps=n_steps,
        per_device_train_batch_size=args.bs if together else 1,
        gradient_accumulation_steps=1 if together else args.bs, learning_rate=ADAM['lr'],
        adam_beta1=ADAM['betas'][0], adam_beta2=ADAM['betas'][1], adam_epsilon=ADAM['eps'],
        weight_decay=0., lr_scheduler_type='constant', max_grad_norm=0.,
        gradient_checkpointing=checkpointing, bf16=args.precision == 'bf16', use_cpu=True,
        report_to='none', save_strategy='no', eval_strategy='no', logging_strategy='no',
        disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy='sequential')


def run_trl(model, blocks, args, checkpointing=False):
    "TRL's SFTTrainer on the same blocks; its own defaults otherwise."
    from transformers import TrainerCallback
    from trl import SFTTrainer
    clock, losses, n_steps = Clock(), [], len(blocks)//args.bs

    class Ticks(TrainerCallback):
        def on_train_begin(self, *args, **kwargs): clock.tick()
        def on_step_end(self, *args, **kwargs): clock.tick()

    class Trainer(SFTTrainer):
        def compute_loss(self, *args, **kwargs):
            out = super().compute_loss(*args, **kwargs)
            losses.append((out[0] if isinstance(out, tuple) else out).item())
            return out

    rows = datasets.Dataset.from_list(list(rows_for_trl(blocks)))
    with tempfile.TemporaryDirectory() as folder:
        config = trl_config(folder, args, n_steps, checkpointing, together=args.bs == 1)
        Trainer(model, config, train_dataset=rows, processing_class=args.tokenizer,
                callbacks=[Ticks()]).train()
    n = len(losses)//n_steps
    steps = [sum(losses[i:i + n]) for i in range(0, len(losses), n)]
    return clock.seconds() | dict(losses=steps)


# Each way: its name, what runs it, its precision, what it has
WAYS = dict(
    article=(run_article, 'fp32', dict(checkpointing=True)),
    article_kept=(run_article, 'fp32', dict()),
    fit=(run_fit, 'fp32', dict()),
    bf16=(run_fit, 'bf16', dict()),
    documents=(run_fit, 'bf16', dict(per_document=True)),
    head=(run_fit, 'bf16', dict(per_document=True, fused=True)),
    trunk=(run_fit, 'bf16', dict(per_document=True, fused=True, trunk=True)),
    folded=(run_fit, 'bf16', dict(per_document=True, fused=True, trunk=True, folded=True)),
    trl_defaults=(run_trl, 'bf16', dict(checkpointing=True)),
    trl=(run_trl, 'bf16', dict()))


def profiled(work):
    "What `work` gives, and the share of the processor's time that each operator has for itself."
    with torch.profiler.profile() as seen: found = work()
    own = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(own.values())
    shares = {name: round(t/total, 4) for name, t in sorted(own.items(), key=lambda x: -x[1])}
    return found | dict(profile={name: share for name, share in shares.items() if share >= .002})


def machine():
    "What the machine can do, and what it is."
    return dict(fp32=rate(torch.float32), bf16=rate(torch.bfloat16), processor=processor(),
                torch=torch.__version__, transformers=transformers.__version__)


def run(args):
    "Train in a way -> its figures."
    work, precision, how = WAYS[args.way]
    args.precision = args.precision or precision
    blocks = datasets.load_from_disk(args.blocks).select(range(args.steps*args.bs))
    args.max_seq_len = len(blocks[0]['labels'])
    model, args.tokenizer = load_model(args.model, dtype=torch.float32)
    freeze(model, args.n_freeze, tied=args.tied)
    def once(): return work(model, blocks, args, **how)
    found = profiled(once) if args.profile else once()
    labels = [block['labels'] for block in blocks]
    counts = [sum(y != RESTING for y in block) for block in labels]
    targets = [sum(counts[i:i + args.bs]) for i in range(0, len(counts), args.bs)]
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return dict(precision=args.precision, targets=targets, trained=n_trained,
                losses=[round(loss, 6) for loss in found.pop('losses')], **found,
                peak=peak_bytes())


def main():
    "Print one line."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('way', choices=[*WAYS, 'machine'])
    parser.add_argument('--model', default='small_world')
    parser.add_argument('--blocks')
    parser.add_argument('--n_freeze', type=int, default=6)
    parser.add_argument('--tied', default='freeze')
    parser.add_argument('--bs', type=int, default=1)
    parser.add_argument('--steps', type=int, default=3)
    parser.add_argument('--precision', choices=['fp32', 'bf16'], help="default: the way's own")
    parser.add_argument('--profile', action='store_true')
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = machine() if args.way == 'machine' else run(args)
    print(json.dumps(dict(way=args.way, threads=1, allocator=allocator(), **found)))


if __name__ == '__main__': main()
