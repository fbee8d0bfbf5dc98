"""Check what the house promises and no library checks: print each fault, exit 1 if there is one.

    python .ci/house.py

Pages are the notebooks under nbs/, modules what they export. Needs the environment of `.[dev]`.
"""
import ast, configparser, importlib, re, sys, textwrap
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp, nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbdev.process import extract_directives

root = Path(__file__).resolve().parent.parent
package = 'alpaca_ft'
lessons = {'data', 'freeze', 'loop', 'validate', 'judge'}
max_lines = dict(lesson=220, other=300)
max_columns = 100

# What checks and readers may count on, by module
contract = {
    'data': 'load_rows split_rows make_prompt encode encode_rows pack get_dls',
    'freeze': 'load_model freeze count_params checkpoint_layers memory_ledger flops_ledger',
    'tools.trunk': 'split_trunk cache_trunk',
    'config': 'Config',
    'loop': 'lm_loss Accuracy fit',
    'results.save': 'save_model',
    'validate': 'evaluate generate prompt_table measure validate',
    'judge': 'judge_pair judge_pairs win_rates wilson replay_article',
    'small_world': 'model_path make_rows score oracle_server',
    'finetune': 'finetune main run_command'}
# What readers call although no other module or page does, by module
called_by_readers = {
    'contest': 'judge_run',
    'loop': 'History',
    'tools.attention': 'attend_plainly',
    'results.artifacts': 'restore publish fetch',
    'results.rating': 'rating_page',
    'results.save': 'model_card log_model upload',
    'world.pretrain': 'pretrain'}


# Reading modules and pages
def modules():
    "Each module's name, without the package's, and its file."
    for path in sorted((root/package).rglob('*.py')):
        if not path.stem.startswith('_'):
            yield '.'.join(path.relative_to(root/package).with_suffix('').parts), path


def pages():
    "Each page's file, its code as plain Python, and the module that it exports to, or None."
    plain = TransformerManager().transform_cell  # %magics and !commands become calls
    for path in sorted((root/'nbs').rglob('*.ipynb')):
        if any(part[0] in '._' for part in path.relative_to(root).parts): continue
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
        named = [extract_directives(c, remove=False).get('default_exp') for c in cells]
        exports = next((args[0] for args in named if args), None)
        yield path, '\n'.join(plain(c.source) for c in cells), exports


def sources():
    "All code: where it stands, the module that it belongs to, its syntax tree."
    for module, path in modules(): yield path, module, ast.parse(path.read_text('utf-8'))
    for path, code, exports in pages(): yield path, exports, ast.parse(code)


def short(path): return path.relative_to(root).as_posix()


def words(by_module):
    "Pairs of a module and a name, from a dict of names by module."
    return {(module, name) for module, names in by_module.items() for name in names.split()}


def exported(path):
    "The node of a module's `__all__`, and the names in it."
    for node in ast.parse(path.read_text('utf-8')).body:
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == '__all__':
            return node, ast.literal_eval(node.value)


# What some code uses of ours
def dotted(node):
    "`a.b.c` as text; None for anything that is not names joined by dots."
    if isinstance(node, ast.Name): return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f'{before}.{node.attr}'


def imported(node, module):
    "The module that an `import from` names, without the package's name; None if it is not ours."
    if node.level:
        folders = module.split('.')[:-node.level]
        return '.'.join(folders + [node.module] * bool(node.module))
    if node.module == package: return ''
    if node.module.startswith(f'{package}.'): return node.module[len(package) + 1:]


def by_text(call):
    "`module.name` of a call such as getattr(module, 'name') or patch.object(module, 'name')."
    if len(call.args) < 2 or not isinstance(call.args[1], ast.Constant): return None
    if owner := dotted(call.args[0]): return f'{owner}.{call.args[1].value}'


def code_in(text):
    "The tree of a text that is code, as another process runs it; an empty one for other texts."
    try: return ast.parse(textwrap.dedent(text))
    except SyntaxError: return ast.Module([], [])


def names_used(tree, module, known):
    "Each (module, name, line) of ours that code imports, or reaches through a module it holds."
    held = {}  # how the code calls a module of ours -> the module
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.split('.')[0] != package: continue
                held[package] = ''
                if a.asname: held[a.asname] = a.name[len(package) + 1:]
        if isinstance(node, ast.ImportFrom) and (source := imported(node, module)) is not None:
            for a in node.names:
                whole = f'{source}.{a.name}'.lstrip('.')
                if whole in known: held[a.asname or a.name] = whole
                else: yield source, a.name, node.lineno
    for node in ast.walk(tree):
        path = None
        if isinstance(node, ast.Attribute): path = dotted(node)
        if isinstance(node, ast.Call): path = by_text(node)
        if isinstance(node, ast.Constant) and package in str(node.value):
            if re.fullmatch(r'[\w.]+', node.value): held[package], path = '', node.value  # patch
            else: yield from names_used(code_in(node.value), module, known)
        first, _, rest = (path or '').partition('.')
        if first not in held: continue
        source, _, name = f'{held[first]}.{rest}'.strip('.').rpartition('.')
        if source in known: yield source, name, node.lineno


# The checks
def contract_faults():
    "A name of the contract that cannot be imported from where it has to be."
    for module, name in sorted(words(contract)):
        try: found = name in importlib.import_module(f'{package}.{module}').__all__
        except ImportError: found = False
        if not found: yield f'{package}.{module} does not export {name}, which is contract'


def private_faults(used):
    "A private name of another module."
    for path, own, names in used:
        for module, name, line in names:
            if not name.startswith('_') or name.startswith('__') or module == own: continue
            place = f'{short(path)}:{line}' if path.suffix == '.py' else short(path)
            yield f'{place}: uses {name}, which is private to {package}.{module}'


def size_faults():
    "A module of too many lines, a line of too many columns."
    for module, path in modules():
        lines = path.read_text('utf-8').splitlines()
        most = max_lines['lesson' if module in lessons else 'other']
        if len(lines) > most: yield f'{short(path)}: {len(lines)} lines, at most {most} are allowed'
        node, _ = exported(path)  # which nbdev itself writes, 120 columns wide
        for i, line in enumerate(lines, 1):
            if node.lineno <= i <= node.end_lineno or len(line) <= max_columns: continue
            yield f'{short(path)}:{i}: {len(line)} columns, at most {max_columns} are allowed'


def comprehension_faults():
    "A line that begins two comprehensions."
    kinds = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
    for _, path in modules():
        tree = ast.parse(path.read_text('utf-8'))
        lines = Counter(node.lineno for node in ast.walk(tree) if isinstance(node, kinds))
        for line, n in lines.items():
            if n > 1: yield f'{short(path)}:{line}: {n} comprehensions, at most 1 is allowed'


def unused_faults(used):
    "An exported name that is neither contract nor used elsewhere nor called by readers."
    config = configparser.ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    commands = re.findall(rf'={package}\.(\S+):(\w+)', config['DEFAULT']['console_scripts'])
    wanted = words(contract) | words(called_by_readers) | {*commands}
    for _, own, names in used: wanted |= {(m, name) for m, name, _ in names if m != own}
    for module, path in modules():
        for name in exported(path)[1]:
            if (module, name) in wanted: continue
            yield f'{package}.{module} exports {name}, unused: `#| exporti` it, or make it private'


def page_faults():
    "A module without its page, a page without its module, two pages of one module."
    written = Counter(exports for _, _, exports in pages() if exports)
    here = Counter(module for module, _ in modules())
    for m in written - here: yield f'{package}.{m} is not there, or two pages export to it'
    for m in here - written: yield f'{package}.{m} has no page: remove it by hand'


def circle_faults():
    "A module that imports itself through others, inside functions too."
    graph = grimp.build_graph(package, cache_dir=None)
    below = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    try: TopologicalSorter(below).prepare()
    except CycleError as e: yield f"a circle of imports: {' <- '.join(e.args[1])}"


def main():
    "Check everything, print the faults, return the exit code."
    sys.path.insert(0, str(root))
    known = dict(modules())
    used = [(path, own, [*names_used(tree, own, known)]) for path, own, tree in sources()]
    faults = [*contract_faults(), *private_faults(used), *size_faults(), *comprehension_faults(),
              *unused_faults(used), *page_faults(), *circle_faults()]
    print(*faults, sep='\n', end='\n' * bool(faults))
    print(f'house: {len(known)} modules, {len(faults)} faults')
    return int(bool(faults))


if __name__ == '__main__': sys.exit(main())
