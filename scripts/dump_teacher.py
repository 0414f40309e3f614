"""Stylise N contents with M styles by StyleID and write the triplets as NumPy arrays.

Further commands, each with its --help: "verify DIR" checks a dataset, "preview DIR" shows it,
"import" makes one of another tool's pictures, "export-tfds DIR" copies it for TensorFlow Datasets.
"""

import sys

from command import run

from triplets.import_pictures import ImportConfig, import_pictures
from triplets.preview import PreviewConfig, preview
from triplets.tfds_export import ExportConfig, export_tfds
from triplets.verify import VerifyConfig, verify

COMMANDS = {
    "verify": (verify, VerifyConfig),
    "preview": (preview, PreviewConfig),
    "import": (import_pictures, ImportConfig),
    "export-tfds": (export_tfds, ExportConfig),
}

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        main, config = COMMANDS[name]
        sys.argv[:2] = [f"{sys.argv[0]} {name}"]
        run(main, config, config.__doc__)
    else:
        # Imported here, because torch takes seconds that the other commands do not need.
        from teacher_torch.dump import dump, dump_config_type_for

        run(dump, dump_config_type_for(sys.argv[1:]), __doc__)
