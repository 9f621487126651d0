from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_text_needs_no_heavy_package_before_it_is_used() -> None:
    code = (
        "import sys, metatoolkit.tasks, metatoolkit.evaluation, metatoolkit.networks.pretrained\n"
        "corpora = metatoolkit.tasks.generated_languages(2, train=5, dev=2, test=2)\n"
        "heavy = {'transformers', 'tokenizers', 'datasets', 'seqeval', 'huggingface_hub'}\n"
        "print(len(corpora), sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2 []"
