"""Break a small run of the command in one of the ways of `faults.ipynb`; print a line of JSON each.

    python nbs/studies/faults_run.py KIND [KIND ..] [--n N] [--seed 0]

Kinds: kills, disks, spoiled, twice, trackers, secrets; soak, alone: half an hour of trainings in
one process. A run is the whole command, in a process of
its own: 40 rows, two epochs, a judge. What a fault is compared with is the same run, left alone.
A line says what was done, how it ended, and what is wrong with that (`faults`, empty: nothing).
"""
import argparse, hashlib, json, os, random, resource, shutil, signal, subprocess, sys, tempfile
import threading, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SMALL = ('--n_rows 40 --n_eval 12 --batch_size 2 --epochs 2 --n_eval_samples 2 --max_new_tokens 6 '
         '--n_judge 6').split()
SECRETS = dict(OPENAI_API_KEY='sk-PLANTEDa1b2c3d4', HF_TOKEN='hf_PLANTEDe5f6g7h8',
               WANDB_API_KEY='PLANTED'.ljust(40, '0'))
COMMAND = 'import sys; from alpaca_ft.finetune import main; sys.exit(main(sys.argv[1:]))'
# a checkpoint after each step, so that a fault has something to fall back on
STEPS = ('from alpaca_ft.loop import fit; '
         'fit.__defaults__ = (*fit.__defaults__[:3], 1, *fit.__defaults__[4:]); ')


# Running the command
def environment(**more):
    "The environment of a run: one thread, no bars, no network."
    quiet = dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', WANDB_SILENT='true', HF_HUB_OFFLINE='1')
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith('_proxy')}
    return kept | quiet | SECRETS | more


def start(out, *argv, limit=None, **env):
    "Start the command in `out`; no file may grow beyond `limit` bytes."
    def hold(): resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.Popen(
        [sys.executable, '-c', STEPS + COMMAND, *SMALL, '--out', str(out), *argv], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(**env),
        preexec_fn=hold if limit else None)


def end(process, seconds=300):
    "Wait for a run -> exit code ('hangs': none came), all that it said."
    try: said = ''.join(process.communicate(timeout=seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        return 'hangs', ''.join(process.communicate())
    return process.returncode, said


def run(out, *argv, **how): return end(start(out, *argv, **how))


# What came of it
def digest(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def jsonl(path):
    path = Path(path)
    lines = path.read_text('utf-8').splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def result(out):
    "What a finished run has found: weights, figures, answers, verdicts."
    out = Path(out)
    report = json.loads((out/'report.json').read_text('utf-8'))
    said = [(v['id'], v['winner']) for v in (report['judge'] or {}).get('verdicts', [])]
    return dict(weights=digest(out/'model/model.safetensors'), after=report['after'],
                before=report['before'], answers=digest(out/'generations.jsonl'), verdicts=said)


def doubled(out):
    "Good verdicts that stand twice, and samples of one row at one step that stand twice."
    good = Counter(v['key'] for v in jsonl(Path(out)/'verdicts.jsonl') if v['error'] is None)
    samples = Counter((r['step'], r['row_id']) for r in jsonl(Path(out)/'predictions.jsonl'))
    return [k for k, n in (good + samples).items() if n > 1]


def judge_end(code, said, out, alone, may_refuse=False):
    "The faults of how a run ended: it must be as the run that was left alone, or say one sentence."
    faults = ['traceback'] if 'Traceback' in said else []
    faults += ['secret'] if any(secret in said for secret in SECRETS.values()) else []
    if code == 0:
        faults += [f'wrong: {k}' for k, v in result(out).items() if v != alone[k]]
        faults += ['doubled'] if doubled(out) else []
    elif code != 1 or not may_refuse: faults.append(f'lost: exit code {code}')
    return faults


def record(kind, what, code, said, faults):
    "One line of the study."
    last = next((line for line in reversed(said.splitlines()) if line.strip()), '')
    return dict(kind=kind, what=what, code=code, said=last[:300], faults=faults)


# The kinds of faults
def kills(alone, seconds, n, seed, folder):
    "SIGKILL at any instant of the whole command, then --resume."
    draw = random.Random(seed)
    for i in range(n):
        out, instant = folder/f'kill{i}', draw.uniform(.2, 1)*seconds
        process = start(out)
        time.sleep(instant)
        process.send_signal(signal.SIGKILL)
        end(process)
        code, said = run(out, '--resume')
        yield record('kills', f'after {instant/seconds:.0%} of the time', code, said,
                     judge_end(code, said, out, alone))
        shutil.rmtree(out)


def disks(alone, seconds, n, seed, folder):
    "A disk too small for the run: first a sentence, and with more room all of it."
    sizes = [int(10**(4 + 3.3*i/max(1, n - 1))) for i in range(n)]  # 10 kB to 20 MB
    for size in sizes:
        out = folder/f'disk{size}'
        first, said = run(out, limit=size)
        faults = ['traceback'] if 'Traceback' in said else []
        if first not in (0, 1): faults.append(f'lost: exit code {first}')
        code, again = run(out, '--resume')
        faults += judge_end(code, again, out, alone)
        yield record('disks', f'no file above {size:,} bytes', first, said, faults)
        shutil.rmtree(out)


def flip(data, draw):
    "One bit, anywhere."
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1:]


SPOIL = dict(
    flipped=flip, truncated=lambda data, draw: data[:draw.randrange(len(data))],
    another=lambda data, draw: b'{"a": [1, 2]}\n', noise=lambda data, draw: draw.randbytes(999),
    empty=lambda data, draw: b'')


def spoiled(alone, seconds, n, seed, folder):
    "A file of an interrupted run, or of a finished one, is damaged; then --resume."
    draw = random.Random(seed)
    half, whole = folder/'half', folder/'whole'
    process = start(half)
    while process.poll() is None and len([*half.glob('checkpoints/*.pt')]) < 2: time.sleep(.02)
    process.kill()
    end(process)
    run(whole)
    files = [path for run_ in (half, whole) for path in sorted(run_.rglob('*')) if path.is_file()]
    cases = [(path, how) for path in files for how in SPOIL if path.stat().st_size]
    for path, how in draw.sample(cases, min(n, len(cases))):
        base = half if half in path.parents else whole
        out = folder/'spoiled'
        shutil.copytree(base, out)
        damaged = out/path.relative_to(base)
        damaged.write_bytes(SPOIL[how](path.read_bytes(), draw))
        code, said = run(out, '--resume')
        faults = judge_end(code, said, out, alone, may_refuse=True)
        if code == 1 and damaged.name not in said: faults.append('the file is not named')
        what = f'{base.name}: {damaged.relative_to(out)} {how}'
        yield record('spoiled', what, code, said, faults)
        shutil.rmtree(out)


def twice(alone, seconds, n, seed, folder):
    "Two runs are started in one folder at once."
    draw = random.Random(seed)
    for i in range(n):
        out = folder/f'twice{i}'
        first = start(out)
        time.sleep(draw.uniform(0, 1)*seconds)
        second = start(out, *draw.choice([[], ['--resume']]))
        with ThreadPoolExecutor(2) as pool: ends = [*pool.map(end, (first, second))]
        ends.sort(key=lambda one: one[0] != 0)
        (code, said), (other, refused) = ends
        faults = judge_end(code, said, out, alone) + ['traceback']*('Traceback' in refused)
        if other not in (0, 1): faults.append(f'the other one: exit code {other}')
        yield record('twice', f'a second one, exit code {other}', code, refused, faults)
        shutil.rmtree(out)


class Tracker(BaseHTTPRequestHandler):
    "A server that accepts whatever comes, and never answers."
    def log_message(self, *args): pass
    def do_POST(self): time.sleep(600)
    do_GET = do_PUT = do_POST


def trackers(alone, seconds, n, seed, folder):
    "W&B's server is not there, or accepts and never answers."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Tracker)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online = dict(WANDB_INIT_TIMEOUT='10', WANDB_MODE='online')
    for what, port in ('down', 9), ('half-open', server.server_port):
        out, began = folder/what, time.monotonic()
        code, said = run(out, '--wandb_mode', 'online', WANDB_BASE_URL=f'http://127.0.0.1:{port}',
                         **online)
        faults = judge_end(code, said, out, alone, may_refuse=True)
        if time.monotonic() - began > seconds + 150: faults.append('it took minutes')
        if code == 1 and 'wandb_mode' not in said: faults.append('the tracker is not named')
        yield record('trackers', what, code, said, faults)
    server.shutdown()


def secrets(alone, seconds, n, seed, folder):
    "Keys in the environment, and a password in an address: none may be in a file or be said."
    out = folder/'secrets'
    url = 'http://me:PLANTEDpassword@127.0.0.1:9/v1'
    for argv in ['--wandb_mode', 'offline'], ['--judge_model', 'm', '--judge_url', url]:
        code, said = run(out, *argv)
        texts = [path.read_bytes() for path in out.rglob('*') if path.is_file()]
        leaks = sum(b'PLANTED' in text for text in texts) + ('PLANTED' in said)
        faults = ['traceback']*('Traceback' in said) + ['secret']*leaks
        yield record('secrets', argv[0], code, said, faults)
        shutil.rmtree(out, ignore_errors=True)


def soak(seconds=1800):
    "Tiny trainings in one process, again and again -> a line each: seconds, MB, open files."
    import contextlib, io
    from alpaca_ft.finetune import main
    os.environ.update(environment())
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with tempfile.TemporaryDirectory() as td, contextlib.redirect_stdout(io.StringIO()):
            with contextlib.redirect_stderr(io.StringIO()):
                code = main([*SMALL, '--out', f'{td}/run'])
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        yield dict(kind='soak', code=code, seconds=round(time.monotonic() - began, 1),
                   mb=round(pages*resource.getpagesize()/1e6, 1),
                   files=len(os.listdir('/proc/self/fd')), threads=threading.active_count())


KINDS = dict(kills=kills, disks=disks, spoiled=spoiled, twice=twice, trackers=trackers,
             secrets=secrets)
# How often, where nobody says
TIMES = dict(kills=50, disks=12, spoiled=50, twice=6, trackers=2, secrets=2)


def study(kinds, n=None, seed=0):
    "Break runs in these ways, `n` times each (None: as in `TIMES`) -> records."
    with tempfile.TemporaryDirectory() as td:
        folder, began = Path(td), time.monotonic()
        code, said = run(folder/'alone')
        assert code == 0, said
        alone, seconds = result(folder/'alone'), time.monotonic() - began
        for kind in kinds:
            for one in KINDS[kind](alone, seconds, n or TIMES[kind], seed, folder):
                yield one


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('kinds', nargs='+', choices=[*KINDS, 'soak'])
    parser.add_argument('--n', type=int)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    lines = soak() if args.kinds == ['soak'] else study(args.kinds, args.n, args.seed)
    for one in lines: print(json.dumps(one), flush=True)
