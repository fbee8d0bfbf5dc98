"Read settings.ini, the one place where names, versions and requirements stand."
import re, shlex
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
suffix = '_requirements'
extras = {k.removesuffix(suffix): shlex.split(cfg[k]) for k in cfg if k.endswith(suffix)}


def absolute(m):
    "A link of README.md that works on a package index too; a picture's leads to the file itself."
    return f"{m[1]}({cfg['git_url']}/{'raw' if m[1][0] == '!' else 'blob'}/{cfg['branch']}/"


readme = re.sub(r'(!?\[[^\]]*\])\((?!\w+:|#)', absolute, (here/'README.md').read_text('utf-8'))
versions = [f'Programming Language :: Python :: 3.{v}' for v in (11, 12, 13)]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    keywords=cfg['keywords'], author=cfg['author'], author_email=cfg['author_email'],
    url=cfg['git_url'],
    project_urls={'Changelog': f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"},
    long_description=readme, long_description_content_type='text/markdown',
    license='Apache-2.0', license_files=['LICENSE'],
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers',
                 'Intended Audience :: Education', 'Natural Language :: English',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', *versions],
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    # So an editable install is a plain path. setuptools' finder would come after all paths and lose
    # in the folder above a clone: there Python takes the clone itself for a namespace package
    package_dir={'': '.'},
    package_data={cfg['lib_path']: shlex.split(cfg['package_data'])},
    python_requires=f">={cfg['min_python']}", install_requires=shlex.split(cfg['requirements']),
    extras_require=extras,
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']),
                  'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False)
