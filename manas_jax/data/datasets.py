"""What is known of de-raining data: how their folders are named, where to get them, whom to cite.

Data only; `scenes` reads it.
"""

import dataclasses

# Folders whose names (in lower case) say what they hold. A pair folder has one of each.
CLEAN_FOLDERS = frozenset(
    {"norain", "clean", "target", "ground_truth", "groundtruth", "gt", "label", "nonrain"}
)
RAINY_FOLDERS = frozenset({"rain", "rainy", "input", "rainy_image", "data", "lq"})

# Folders whose names (in lower case) say which split they hold.
TRAIN_FOLDERS = frozenset({"train", "training"})
TEST_FOLDERS = frozenset({"test", "testing"})

# Words that name the role inside a file's name: `norain-1.png`, `7_rain.png`, `7_rain_2.png`.
CLEAN_WORDS = ("norain", "nonrain", "clean", "target", "ground_truth", "gt")
RAINY_WORDS = ("rainy", "rain", "input")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One published data set.

    Attributes:
      title: its name as papers write it.
      layout: how its folders and files are named below `data.root`.
      versions: rainy versions per clean picture.
      citation: the paper that introduced it.
      url: where its authors (or the work that made it common) offer it.
    """

    title: str
    layout: str
    versions: int
    citation: str
    url: str


BENCHMARKS = {
    "rain100l": Benchmark(
        title="Rain100L",
        layout="{train,test}/{rain,norain}/N.png, or rain-N.png beside norain-N.png",
        versions=1,
        citation=(
            "Yang, Tan, Feng, Liu, Guo, Yan: Deep Joint Rain Detection and Removal from a Single "
            "Image. CVPR 2017"
        ),
        url="https://www.icst.pku.edu.cn/struct/Projects/joint_rain_removal.html",
    ),
    "rain100h": Benchmark(
        title="Rain100H",
        layout="{train,test}/{rain,norain}/N.png, or rain-N.png beside norain-N.png",
        versions=1,
        citation=(
            "Yang, Tan, Feng, Liu, Guo, Yan: Deep Joint Rain Detection and Removal from a Single "
            "Image. CVPR 2017"
        ),
        url="https://www.icst.pku.edu.cn/struct/Projects/joint_rain_removal.html",
    ),
    "rain14000": Benchmark(
        title="Rain14000 (DDN)",
        layout="{training,testing}/{ground_truth/K.jpg,rainy_image/K_V.jpg}",
        versions=14,
        citation=(
            "Fu, Huang, Zeng, Huang, Ding, Paisley: Removing Rain from Single Images via a Deep "
            "Detail Network. CVPR 2017"
        ),
        url="https://xueyangfu.github.io/projects/cvpr2017.html",
    ),
    "rain13k": Benchmark(
        title="Rain13K",
        layout="{train,test/NAME}/{input,target}/N.{jpg,png}",
        versions=1,
        citation=(
            "Zamir, Arora, Khan, Hayat, Khan, Yang, Shao: Multi-Stage Progressive Image "
            "Restoration. CVPR 2021"
        ),
        url="https://github.com/swz30/MPRNet",
    ),
}
