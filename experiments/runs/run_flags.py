"""Flags that the search and the training share; a binary adopts them as its own.

One place, because a flag has one definition and one default however many binaries are imported.
"""

from absl import flags

from experiments.data import datasets

FLAGS = flags.FLAGS

flags.DEFINE_string("run_dir", None, "Folder for everything that the run writes; new or empty.")
flags.DEFINE_bool("resume", False, "Go on with a run that was interrupted, from its last checkpoint.")
flags.DEFINE_string(
    "compilation_cache_dir",
    None,
    "Folder of compiled programs, for faster starts; empty for none. Default: dada/jax in the user's cache.",
)
flags.DEFINE_integer("num_devices", None, "Devices that share every batch. Default: all.", lower_bound=1)
flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, for a run of several processes.")
flags.DEFINE_integer("num_processes", None, "Processes of the run.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
flags.DEFINE_integer("seed", 0, "Seed of everything random.", lower_bound=0)
flags.DEFINE_integer("num_seeds", 1, "Runs with seeds seed, seed + 1, ...", lower_bound=1)

flags.DEFINE_string("dataset", "embedded", f"One of {', '.join(datasets.NAMES)}, an .npz or a folder.")
flags.DEFINE_string("data_dir", None, "Folder with the official files of CIFAR or SVHN.")
flags.DEFINE_bool("download", False, "Fetch the official files into --data_dir if they are missing.")
flags.DEFINE_integer(
    "image_size", None, "Side to which a folder of images is brought. Default: as they are.", lower_bound=1
)
flags.DEFINE_string(
    "planted_op",
    None,
    "NAME or NAME:VALUE, on every validation image of a search or test image of a training; or empty.",
)
flags.DEFINE_string("model", "wrn_40_2", "Network, for example wrn_40_2.")

flags.DEFINE_integer(
    "epochs", None, "Passes over the training images. Default: 20 for a search, 200 for a training.",
    lower_bound=1,
)
flags.DEFINE_integer("batch_size", 128, "Training images per step.", lower_bound=2)
flags.DEFINE_float("learning_rate", 0.1, "Of the network, at the start.", lower_bound=0.0)
flags.DEFINE_float("weight_decay", 2e-4, "Of the network.", lower_bound=0.0)
flags.DEFINE_float("clip_norm", 5.0, "Largest norm of the network's gradient; 0 for none.", lower_bound=0.0)
flags.DEFINE_integer("crop_padding", 4, "Random crop with this padding; 0 for none.", lower_bound=0)
flags.DEFINE_bool("flip", True, "Random horizontal flip.")
flags.DEFINE_integer("cutout_length", 16, "Side of the cutout after the policy; 0 for none.", lower_bound=0)
