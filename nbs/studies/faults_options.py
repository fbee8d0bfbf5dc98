"""Forty sets of options that cannot be run, and what the command says of each.

    python nbs/studies/faults_options.py

prints a line for each: what was typed, the exit code, the last line that was said. Right is exit
code 1 or 2 and a sentence that names the option; `outcomes` gives the same to a page. Nothing of it
is a dry run: each is to be refused before anything is loaded or written.
"""
import contextlib
import io
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

UNREADABLE = """
--learning_rate 1
--epochs three
--n_rows 2.5
--mask_prompt maybe
--columns {
--columns {"instruction":"q","instruction":"r"}
--preset huge
--lr
""".strip().split('\n')
IMPOSSIBLE = """
--seed 100000000000000000000000
--seed -1
--lr 0
--lr nan
--batch_size 0
--max_seq_len 1000000000000
--temperature -1
--temperature 1e-320
--top_p 0
--top_p 1.5
--warmup 1
--n_freeze -1
--n_freeze 9
--n_eval 0
--answer_batch_size 0
--precision fp8
--tied yes
--template alpaka
--judge_model m --judge_url localhost:1234
--judge_model m --judge_url ftp://a/v1
--judge_model m --judge_url http://a:b/v1
--wandb_project a/b
--wandb_mode maybe
--columns {"prompt":"q"}
--columns {"instruction":"q","output":"q"}
--rows nowhere.jsonl
--rows rows.csv
--model ./nowhere
--out file
--out file/run
--out full
""".strip().split('\n')
ELSEWHERE = {'started twice by torchrun': dict(WORLD_SIZE='2')}   # name -> environment
WRONG = [*UNREADABLE, *IMPOSSIBLE, *ELSEWHERE]


@contextlib.contextmanager
def in_folder():
    "A folder with a file, a table and a full folder in it, to stand in while the command runs."
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path('file').write_text('', 'utf-8')
        Path('rows.csv').write_text('instruction,output\na,b\n', 'utf-8')
        Path('full').mkdir()
        Path('full/notes.txt').write_text('mine', 'utf-8')
        try: yield folder
        finally: os.chdir(before)


def outcomes(wrong=None):
    "(what was typed, exit code, last line said) of each; a traceback is the exception's own name."
    from alpaca_ft.finetune import main
    for typed in WRONG if wrong is None else wrong:
        options, said = [] if typed in ELSEWHERE else typed.split(' '), io.StringIO()
        if '--out' not in options: options = ['--out', 'run', *options]
        small = '--n_rows 24 --n_eval 4 --epochs 1 --n_judge 2'.split()
        with (in_folder() as folder, patch.dict(os.environ, ELSEWHERE.get(typed, {})),
              contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO())):
            try: code = main([*small, *options])
            except SystemExit as e: code = e.code
            except Exception as e: code = type(e).__name__
            if Path('run').exists(): code = f'{code}, and a folder was made'
        yield typed, code, said.getvalue().replace(folder, '...').strip().split('\n')[-1]


if __name__ == '__main__':
    for outcome in outcomes(): print(*outcome, sep=' | ', flush=True)
