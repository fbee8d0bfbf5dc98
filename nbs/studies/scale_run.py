"""Try several processes in one of the ways of `scale.ipynb`; print a line of JSON each.

    python nbs/studies/scale_run.py KIND [KIND ..] [--n 4] [--model FOLDER --blocks FOLDER]

Kinds: curves (losses of 30 steps by 1 to n processes), kills (SIGKILL of one of two processes at n
instants of the whole command, then --resume), speed (tokens a second: one process with two threads
beside two processes with one thread each). Everything runs on the CPU.
"""
import argparse, json, os, shutil, signal, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import psutil

from alpaca_ft.tools.distributed import across
from faults_run import COMMAND, SMALL, STEPS, end, environment, judge_end, record, result

TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone']

# What is trained: the bundled model, or a folder's, on blocks of the small world or of a folder
SETTING = """
import os, time, torch
from datasets import load_from_disk
from alpaca_ft.config import Config
from alpaca_ft.data import encode_rows, get_dls, pack
from alpaca_ft.freeze import freeze, load_model
from alpaca_ft.loop import fit
from alpaca_ft.small_world import make_rows
from alpaca_ft.tools.attention import attend_per_document
from alpaca_ft.tools.distributed import rank
from alpaca_ft.tools.head import spare_last_layer

name, folder, n_freeze, bs, n_micro, n_steps, n_threads = SET
torch.set_num_threads(n_threads)
model, tokenizer = load_model(name, 'float32')
freeze(model, n_freeze)
spare_last_layer(attend_per_document(model))
if folder: blocks = load_from_disk(folder)
else: blocks = pack(encode_rows(make_rows(1000), tokenizer), 128, mask_prompt=True)
blocks = blocks.select(range(bs*n_micro*n_steps))
cfg = Config(batch_size=bs, gradient_accumulation_steps=n_micro, epochs=1, precision='fp32',
             lr=3e-4)
history = fit(model, get_dls(blocks, blocks, bs)[0], cfg, progress=False)
"""


def fitted(n, name='small_world', folder=None, n_freeze=6, bs=4, n_micro=1, n_steps=30,
           n_threads=1, more=''):
    "What the first of n processes finds out."
    setting = SETTING.replace('SET', repr((name, folder, n_freeze, bs, n_micro, n_steps,
                                           n_threads)))
    how = dict(OMP_NUM_THREADS=str(n_threads))
    os.environ.update(how)
    return across(setting + more, n, timeout=3000)[0]


def curves(args, folder):
    "Losses and norms of 30 steps, by 1 to n processes; a step is three micro-batches of three."
    keep = "result = [(r['loss'], r['grad_norm'], r['accuracy']) for r in history]"
    for n in range(1, args.n + 1):
        yield dict(kind='curves', n=n, steps=fitted(n, bs=3, n_micro=3, more=keep))


def together(out, *argv):
    "Start the command in two processes, under torchrun."
    start = [*TORCHRUN, '--nproc_per_node', '2', '--no-python', sys.executable, '-c']
    more = '--n_rows', '240', '--epochs', '3'
    return subprocess.Popen([*start, STEPS + COMMAND, *SMALL, *more, '--out', str(out), *argv],
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment())


def ranks(process):
    "The processes that torchrun has started."
    try: found = psutil.Process(process.pid).children()
    except psutil.NoSuchProcess: return []
    return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]


def time_of_both(out):
    "For how long both processes are alive in a run that nobody kills, and what it finds."
    process, ticks = together(out), []
    while process.poll() is None:
        if len(ranks(process)) == 2: ticks.append(time.perf_counter())
        time.sleep(.02)
    code, said = end(process)
    if code: raise RuntimeError(said)
    return ticks[-1] - ticks[0], result(out)


def kills(args, folder):
    "SIGKILL of one of two processes at any instant: the job ends, says so, and goes on."
    seconds, alone = time_of_both(folder/'alone')
    for i in range(args.n):
        out, share = folder/f'kill{i}', (i + .5)/args.n
        process = together(out)
        while len(ranks(process)) < 2: time.sleep(.02)
        time.sleep(share*seconds)
        alive, killed = ranks(process), time.perf_counter()
        if len(alive) == 2: alive[i % 2].send_signal(signal.SIGKILL)
        first, said = end(process)
        ended = time.perf_counter() - killed
        faults = ['it ended as if nothing had been'] if len(alive) == 2 and first == 0 else []
        if len(alive) == 2 and ended > 60: faults.append(f'it took {ended:.0f} s to end')
        again, told = end(together(out, '--resume'))
        faults += [f for f in judge_end(again, told, out, alone) if f != 'traceback']
        what = f'process {i % 2} after {share:.0%} of their time'
        ours = [line for line in said.splitlines() if line.startswith('alpaca_ft')]
        yield record('kills', what, first, '\n'.join(ours), faults) | dict(
            n_alive=len(alive), seconds_to_end=round(ended, 1),
            resumed=told[-600:] if faults else '')
        shutil.rmtree(out)


def speed(args, folder):
    "Tokens a second of one process with two threads, and of two with one each, in turns."
    tell = """
seconds = [r['seconds'] for r in history][2:]
result = dict(tokens=history[0]['n_tokens'], seconds=seconds, loss=history[-1]['loss'])
"""
    how = dict(name=args.model, folder=args.blocks, n_freeze=args.n_freeze, bs=args.bs,
               n_steps=args.steps, more=tell)
    for _ in range(args.n):
        for n, n_threads in ((1, 2), (2, 1)):
            told = fitted(n, n_threads=n_threads, **how)
            rate = told['tokens']/statistics.median(told['seconds'])
            yield dict(kind='speed', n=n, n_threads=n_threads, tokens_per_s=round(rate, 1)) | told


def main():
    lines = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=lines)
    parser.add_argument('kinds', nargs='+', choices=['curves', 'kills', 'speed'])
    parser.add_argument('--n', type=int, default=4, help='processes, instants, or turns')
    parser.add_argument('--model', default='small_world')
    parser.add_argument('--blocks', help='of pack, saved by save_to_disk; else the small world')
    parser.add_argument('--n_freeze', type=int, default=6)
    parser.add_argument('--bs', type=int, default=4)
    parser.add_argument('--steps', type=int, default=8)
    args = parser.parse_args()
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            for line in globals()[kind](args, Path(folder)): print(json.dumps(line), flush=True)


if __name__ == '__main__': main()
