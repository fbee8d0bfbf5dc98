"""How fast is training on a GPU, at Llama-2-7B's shape? Ours, plain and cached, beside TRL.

    python nbs/studies/gpu_run.py > gpu_run.jsonl

It takes at most 8 minutes and needs no weights: they are random. On a GPU it runs the pages' cells
marked `cuda`, then each way of training in a process of its own, at Llama-2-7B's shape (frozen
weights bf16, trained ones fp32, n_freeze 24, blocks of 1,024, layers checkpointed and not). Each
line that it prints is JSON and names the card. Without a GPU it takes a small shape and some
seconds. TRL runs where it is installed: pip install 'alpaca_ft[compare]'.
"""
import argparse, json, math, multiprocessing, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
import datasets, torch, transformers
from transformers import AutoModelForCausalLM, LlamaConfig

from alpaca_ft.config import Config
from alpaca_ft.data import get_dls, pack
from alpaca_ft.freeze import flops_ledger, freeze, memory_ledger
from alpaca_ft.loop import fit
from alpaca_ft.tools.attention import attend_per_document
from alpaca_ft.tools.ledger import GPUS
from alpaca_ft.tools.trunk import cache_trunk, split_trunk

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
here = Path(__file__).resolve().parent

# What is trained
SHAPES = {
    'llama2_7b': dict(
        model=dict(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
                   num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32),
        n_freeze=24, max_seq_len=1024, bs=8, n_steps=8, warm=2, answer=(40, 400)),
    'small': dict(
        model=dict(vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=4,
                   num_attention_heads=4, num_key_value_heads=2),
        n_freeze=3, max_seq_len=128, bs=2, n_steps=4, warm=1, answer=(10, 50))}
# What differs between ours
WAYS = {
    'plain, checkpointed': dict(checkpointing=True),
    'plain': dict(),
    'per document': dict(per_document=True),
    'per document, checkpointed': dict(per_document=True, checkpointing=True),
    'per document, cached': dict(per_document=True, cached=True)}
TRL_WAYS = {
    'TRL, its defaults': dict(checkpointing=True),
    'TRL, not checkpointed': dict(),
    'TRL, not checkpointed, a block at a time': dict(one_by_one=True)}


def has_gpu(): return torch.cuda.is_available()


def make_model(shape):
    "The model with random weights, frozen; bf16 below and fp32 above on a GPU, fp32 on a CPU."
    torch.manual_seed(0)
    hf_config = LlamaConfig(**shape['model'], tie_word_embeddings=False)
    dtype, device = (torch.bfloat16, 'cuda') if has_gpu() else (torch.float32, 'cpu')
    with torch.device(device): model = AutoModelForCausalLM.from_config(hf_config, dtype=dtype)
    return freeze(model, shape['n_freeze'])


def make_blocks(shape):
    "As many packed blocks as the steps need, of random tokens; about as long as Alpaca's rows."
    torch.manual_seed(1)
    size, n_blocks = shape['max_seq_len'], shape['bs']*shape['n_steps']
    examples, n_tokens = [], 0
    while n_tokens < 1.3*n_blocks*size:
        n = int(torch.randint(*shape['answer'], ()))
        ids = torch.randint(3, shape['model']['vocab_size'], (n,)).tolist()
        examples.append(dict(input_ids=ids, n_prompt=n//3, row_id=len(examples)))
        n_tokens += n
    return pack(examples, size).select(range(n_blocks))


# What is measured
def card(): return torch.cuda.get_device_name() if has_gpu() else 'CPU, no GPU'


def reached_peak(seconds=1.):
    "Operations a second of a large product: what the card, or a core of this machine, can do."
    n = 8192 if has_gpu() else 512
    a = torch.ones(n, n, dtype=torch.bfloat16 if has_gpu() else torch.float32,
                   device='cuda' if has_gpu() else 'cpu')
    best, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        a @ a
        if has_gpu(): torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2*n**3/best


def peak_bytes():
    "The most that the GPU held, or this process on a CPU."
    if has_gpu(): return torch.cuda.max_memory_allocated()
    return 1024*resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def figures(shape, steps, checkpointing=False, cached=False):
    "One line's figures, from the seconds, tokens, targets and losses of its steps."
    kept = steps[shape['warm']:]
    seconds = sum(s['seconds'] for s in kept)
    flops = flops_ledger(LlamaConfig(**shape['model']), shape['n_freeze'], shape['bs'],
                         shape['max_seq_len'], checkpointing=checkpointing, trunk=not cached)
    per_second = len(kept)*flops['total']/seconds
    return dict(tokens_per_s=round(sum(s['n_tokens'] for s in kept)/seconds, 1),
                targets_per_s=round(sum(s['n_targets'] for s in kept)/seconds, 1),
                seconds_per_step=round(seconds/len(kept), 4), peak_bytes=peak_bytes(),
                operations_per_s=round(per_second),
                losses=[round(s['loss'], 5) for s in steps])


def run_ours(shape, checkpointing=False, per_document=False, cached=False):
    "Train by `fit`; where it is cached, the pass counts apart, since epochs share it."
    model, blocks = make_model(shape), make_blocks(shape)
    if per_document: attend_per_document(model)
    n_freeze, more = shape['n_freeze'], {}
    precision = 'bf16' if has_gpu() else 'fp32'
    cfg = Config(precision=precision, batch_size=shape['bs'], gradient_accumulation_steps=1,
                 epochs=1, lr=2e-4, warmup=0., max_seq_len=shape['max_seq_len'], n_freeze=n_freeze,
                 gradient_checkpointing=checkpointing)
    predicted = memory_ledger(
        model.config, n_freeze, shape['bs'], shape['max_seq_len'], checkpointing=checkpointing,
        precision='mixed' if has_gpu() else 'fp32', trunk=not cached, packed=not per_document)
    with tempfile.TemporaryDirectory() as d:
        if cached:
            start = time.perf_counter()
            as_run = dict(precision=precision) if has_gpu() else {}  # a CPU's is fp32 anyhow
            blocks = cache_trunk(model, blocks, n_freeze, f'{d}/trunk', shape['bs'], **as_run,
                                 progress=False)
            more = dict(pass_seconds=round(time.perf_counter() - start, 3))  # an epoch's blocks
            if has_gpu():  # the frozen part need not stay there
                from alpaca_ft.tools.load import put_away
                put_away(model, n_freeze)
            model = split_trunk(model, n_freeze)[1]
        train_dl, _ = get_dls(blocks, blocks, shape['bs'])
        if has_gpu(): torch.cuda.reset_peak_memory_stats()
        steps = fit(model, train_dl, cfg, progress=False)
    more |= dict(predicted_bytes=predicted['total'])
    found = figures(shape, steps, checkpointing, cached) | more
    if cached:  # a third of the pass to each of three epochs
        seconds = shape['n_steps']*found['seconds_per_step'] + found['pass_seconds']/3
        n_tokens = shape['n_steps']*shape['bs']*shape['max_seq_len']
        found |= dict(tokens_per_s_of_3_epochs=round(n_tokens/seconds, 1))
    return found


def rows_for_trl(shape):
    "The same documents in the same order, as TRL's packing by best fit would hand them over."
    blocks = make_blocks(shape)
    rows = []
    for batch in get_dls(blocks, blocks, shape['bs'])[0]:
        for ids, labels, position_ids in zip(*(batch[k].tolist() for k in
                                               ('input_ids', 'labels', 'position_ids'))):
            starts = [i for i, p in enumerate(position_ids) if p == 0] + [len(ids)]
            if all(y == -100 for y in labels[starts[-2]:]): starts.pop()  # padding
            rows.append(dict(input_ids=ids[:starts[-1]], labels=[-100, *labels[:starts[-1] - 1]],
                             seq_lengths=[b - a for a, b in zip(starts, starts[1:])]))
    return rows


def run_trl(shape, checkpointing=False, one_by_one=False):
    "Train the same model on the same documents by TRL's SFTTrainer, with the attention it takes."
    try: from trl import SFTConfig, SFTTrainer
    except ImportError: return dict(skipped='trl is not installed')
    from transformers import TrainerCallback
    stamps, losses, rows, bs = [], [], rows_for_trl(shape), shape['bs']
    per_step = bs if one_by_one else 1  # TRL makes one long row of a batch, under one dense mask

    class Clock(TrainerCallback):
        "Note when a step ends."
        def on_train_begin(self, *args, **kwargs): self.on_step_end()
        def on_step_end(self, *args, **kwargs):
            if has_gpu(): torch.cuda.synchronize()
            stamps.append(time.perf_counter())

    class Trainer(SFTTrainer):
        "Note the losses."
        def compute_loss(self, *args, **kwargs):
            out = super().compute_loss(*args, **kwargs)
            losses.append((out[0] if isinstance(out, tuple) else out).detach())
            return out

    with tempfile.TemporaryDirectory() as d:
        args = SFTConfig(
            output_dir=d, max_length=shape['max_seq_len'], packing=True, packing_strategy='bfd',
            dataset_kwargs=dict(skip_prepare_dataset=True),
            per_device_train_batch_size=bs//per_step, gradient_accumulation_steps=per_step,
            max_steps=shape['n_steps'], learning_rate=2e-4, adam_beta1=.9, adam_beta2=.99,
            adam_epsilon=1e-5, weight_decay=0., max_grad_norm=1., lr_scheduler_type='cosine',
            warmup_steps=0, gradient_checkpointing=checkpointing, bf16=has_gpu(),
            use_cpu=not has_gpu(), report_to='none', save_strategy='no', logging_strategy='no',
            disable_tqdm=True, dataloader_pin_memory=False, seed=42,
            train_sampling_strategy='sequential')
        Trainer(make_model(shape), args, train_dataset=datasets.Dataset.from_list(rows),
                processing_class=nothing_to_tokenize(), callbacks=[Clock()]).train()
    steps = []
    for i, (start, stop) in enumerate(zip(stamps, stamps[1:])):
        n_targets = sum(y != -100 for row in rows[i*bs:(i + 1)*bs] for y in row['labels'])
        loss = sum(losses[i*per_step:(i + 1)*per_step]).item()
        steps.append(dict(seconds=stop - start, n_tokens=bs*shape['max_seq_len'],
                          n_targets=n_targets, loss=loss))
    return figures(shape, steps, checkpointing)


def nothing_to_tokenize():
    "A tokenizer for TRL, which wants one; the rows are tokens already."
    from alpaca_ft.small_world import model_path
    return transformers.AutoTokenizer.from_pretrained(model_path())


# Each part runs in a process of its own, so that memory is fresh and a failure costs one line
def machine(_):
    "Where all of this was measured."
    found = dict(torch=torch.__version__, transformers=transformers.__version__,
                 operations_per_s=round(reached_peak()))
    if not has_gpu(): return found
    properties = torch.cuda.get_device_properties(0)
    return found | dict(memory_bytes=properties.total_memory, cuda=torch.version.cuda,
                        capability=f'{properties.major}.{properties.minor}')


def _send(pipe, work, shape, how):
    "Do the work, and send what it found, or how it failed."
    torch.set_num_threads(1)
    sys.stdout = sys.stderr  # trainers print, too
    try: found = work(shape, **how)
    except Exception as e: found = dict(failed=f'{type(e).__name__}: {str(e)[:500]}')
    pipe.send(dict(card=card()) | found)


def apart(work, shape, how, seconds):
    "Run `work(shape, **how)` in a new process, for so many seconds at most -> a dict."
    context = multiprocessing.get_context('fork')  # this process has not touched the GPU
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, work, shape, how))
    process.start()
    there.close()
    try: found = here.recv() if here.poll(max(seconds, 1)) else dict(failed='out of time')
    except EOFError: found = dict(failed='the process died')
    process.kill()
    process.join()
    return found


def shares(found, about):
    "The share of the peak that a line's speed is: of a large product's, and of the maker's."
    speed, name = found.get('operations_per_s'), found['card']
    if not speed: return {}
    out = dict(share_of_peak=round(speed/about['operations_per_s'], 4))
    listed = [peak for key, (_, peak) in GPUS.items() if key.split()[0] in name]
    return out | (dict(share_of_listed_peak=round(speed/listed[0], 4)) if listed else {})


# The cells that need a GPU
def pages_with_cuda():
    "Pages under nbs/ that have a cell marked `cuda`."
    for path in sorted(here.parent.rglob('*.ipynb')):
        cells = json.loads(path.read_text('utf-8'))['cells']
        marked = ('#| cuda' in ''.join(c['source']).splitlines() for c in cells)
        if any(marked): yield path


def run_page(path, seconds):
    "Run a page with its `cuda` cells, as nbdev_test does -> what came of it."
    nbdev_test = Path(sys.executable).parent/'nbdev_test'
    command = [nbdev_test, '--path', str(path), '--flags', 'cuda', '--n_workers', '0']
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1),
                              cwd=here.parent.parent)
    except (OSError, subprocess.TimeoutExpired) as e: return dict(failed=type(e).__name__)
    if done.returncode: return dict(failed=(done.stdout + done.stderr)[-1000:])
    return dict(seconds=round(time.perf_counter() - start, 1))


def run_torchrun(seconds):
    "The command on small rows, under torchrun, with a process for each GPU -> what came of it."
    n, bin = max(1, torch.cuda.device_count()), Path(sys.executable).parent
    rows = '--n_rows 400 --n_eval 40 --epochs 1 --n_judge 0'.split()
    command = [bin/'torchrun', '--standalone', '--nproc_per_node', str(n), '--no-python',
               bin/'alpaca_ft', *rows]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as d:
        try: done = subprocess.run([*command, '--out', f'{d}/run'], capture_output=True, text=True,
                                   timeout=max(seconds, 1))
        except (OSError, subprocess.TimeoutExpired) as e: return dict(failed=type(e).__name__)
        if done.returncode: return dict(failed=(done.stdout + done.stderr)[-1000:])
        report = json.loads(Path(d, 'run/report.json').read_text('utf-8'))
    return dict(n_processes=n, seconds=round(time.perf_counter() - start, 1),
                loss=[report[when]['loss'] for when in ('before', 'after')])


def main(argv=None):
    "Print a line of JSON for each part; 1 where one failed."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--shape', choices=SHAPES, help='default: llama2_7b on a GPU, else small')
    parser.add_argument('--minutes', type=float, default=8., help='for everything')
    parser.add_argument('--only', default='', help='parts whose name begins so')
    args = parser.parse_args(argv)
    until, failed = time.perf_counter() + 60*args.minutes - 5, False

    def say(name, **found):
        "Print a part's line."
        nonlocal failed
        failed |= 'failed' in found
        print(json.dumps(dict(part=name) | found), flush=True)

    about = apart(machine, None, {}, 60)
    on_gpu = 'memory_bytes' in about
    say('machine', **about)
    shape_name = args.shape or ('llama2_7b' if on_gpu else 'small')
    parts = {f'ours, {name}': (run_ours, how) for name, how in WAYS.items()}
    parts |= {name: (run_trl, how) for name, how in TRL_WAYS.items()}
    for name, (work, how) in parts.items():
        if not name.startswith(args.only): continue
        left = min(until - time.perf_counter(), 60)
        found = apart(work, SHAPES[shape_name], how, left)
        say(name, shape=shape_name, **found, **shares(found, about))
    if 'torchrun'.startswith(args.only):
        left = min(until - time.perf_counter(), 90)
        found = run_torchrun(left) if on_gpu else dict(skipped='no GPU')
        say('torchrun', card=about.get('card'), **found)
    for path in pages_with_cuda():
        name = f'page {path.relative_to(here.parent).as_posix()}'
        if not name.startswith(args.only): continue
        if on_gpu: found = run_page(path, until - time.perf_counter())
        else: found = dict(skipped='no GPU')
        say(name, card=about.get('card'), **found)
    return int(failed)


if __name__ == '__main__': sys.exit(main())
