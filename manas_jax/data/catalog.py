"""Facts about de-raining datasets: names of folders and files, where to get them, what to cite.

Data only. Numbers and names were checked against `Dataset.sources`; what could not be checked is
left out.
"""

import dataclasses
from collections.abc import Mapping

# Names (in lower case) of folders of clean and of rainy images; pairs have one of each.
CLEAN_FOLDERS = frozenset(
    {"norain", "clean", "target", "ground_truth", "groundtruth", "gt", "label", "nonrain"}
)
RAINY_FOLDERS = frozenset({"rain", "rainy", "input", "rainy_image", "rainy_images", "data", "lq"})

# Words (in lower case) in the names of folders of training and of test images: `testset`,
# `rain_data_train_Light`, `RainTrainL`.
TRAIN_WORDS = frozenset({"train", "training", "trainset"})
TEST_WORDS = frozenset({"test", "testing", "testset"})

# Names (in lower case) of published splits without such a word.
TRAIN_FOLDERS = frozenset({"rain12600"})
TEST_FOLDERS = frozenset({"rain100l", "rain100h", "rain1400", "real_test_1000"})

# Words that tell the role in a file name: `norain-1.png`, `7_rain.png`, `7_rain_2.png`.
CLEAN_WORDS = ("norain", "no_rain", "nonrain", "clean", "target", "ground_truth", "gt")
RAINY_WORDS = ("rainy", "rain", "input")
RESTORED_WORDS = ("restored", "derained", "output")


@dataclasses.dataclass(frozen=True)
class Layout:
    """File names of a split, as templates of paths relative to the root.

    In a template `{a|b}` is either word (also none: `{a|}`), `{clean}` and `{rainy}` are the
    folder names above, `{ext}` is any image suffix and `{version}` a number that distinguishes
    the rainy versions of a scene. Any other name in braces is a field of the scene's name, and
    rainy files belong to the clean one with the same fields; `{photograph}` also tells the
    photograph that the scene is cropped from, and `{path}` may span folders. Case does not matter.

    Attributes:
      clean: template of the clean images; empty if there are none.
      rainy: template of the rainy images; empty if `clean_half` is set.
      clean_half: 'left' or 'right' if each file holds both images side by side.
      numbers: if not empty, only scenes with these numbers belong to the split.
    """

    clean: str
    rainy: str = ""
    clean_half: str = ""
    numbers: range = range(0)


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
      layouts: the layouts in circulation.
      pairs: accepted numbers of pairs (rainy images), the published one first; empty: any number.
    """

    layouts: tuple[Layout, ...]
    pairs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One published dataset.

    Attributes:
      title: its name as papers write it.
      splits: by name; `train` is for training, all others are for testing.
      backgrounds: which files show the same background.
      citation: the paper that introduced it.
      url: where its authors, or the work that made it common, offer it.
      sources: what these facts were checked against.
      traps: known causes of mistakes.
      near_identical: whether scenes of one `{photograph}` may show the same background up to JPEG
        noise, so that pixels have to be compared.
    """

    title: str
    splits: Mapping[str, Split]
    backgrounds: str
    citation: str
    url: str
    sources: tuple[str, ...]
    traps: tuple[str, ...] = ()
    near_identical: bool = False


def _folders(parent: str) -> Layout:
    """The same names in a clean and a rainy folder."""
    return Layout(parent + "{clean}/{scene}.{ext}", parent + "{rainy}/{scene}.{ext}")


def _pairs(parent: str) -> tuple[Layout, ...]:
    """The layouts in circulation of the datasets of Yang et al."""
    return (
        _folders(parent),
        # As published: norain/norain-1.png and rain/X2/norain-1x2.png; also without the X2.
        Layout(
            parent + "{clean}/norain-{scene}.{ext}",
            parent + "{rainy}/{X2/|}{norain|rain}-{scene}{x2|}.{ext}",
        ),
        # As PReNet offers the first edition: norain-1.png beside rain-1.png or rainy/rain-1.png.
        Layout(parent + "norain-{scene}.{ext}", parent + "{rainy/|}rain-{scene}.{ext}"),
    )


_YANG = (
    "Yang, Tan, Feng, Liu, Guo, Yan: Deep Joint Rain Detection and Removal from a Single Image. "
    "CVPR 2017"
)
_YANG_URL = "https://www.icst.pku.edu.cn/struct/Projects/joint_rain_removal.html"
_PRENET = "README, DerainDataset.py and statistic/ of github.com/csdwren/PReNet"
_RECDERAIN = "README of github.com/csdwren/RecDerain"
_RCDNET = "README of github.com/hongwang01/RCDNet"
_EDITIONS = (
    "The authors replaced the datasets on their page: the first edition tests on 100 images, the "
    "second (here rain200l, rain200h; elsewhere RainLight, RainHeavy) on 200. Results on the two "
    "are not comparable."
)
_EXTRAS = (
    "The training folder also holds rainstreak-*.png and rainregion-*.png: neither clean nor rainy "
    "images, ignored here."
)
_EACH_ALONE = "one per pair; pairs with byte-identical clean images are one scene"

DATASETS: dict[str, Dataset] = {
    "rain100l": Dataset(
        title="Rain100L, first edition",
        splits={
            "train": Split(
                _pairs("{train/|training/|train/small/|train/RainTrainL/|RainTrainL/}"), (200,)
            ),
            "test": Split(_pairs("{test/|testing/|test/small/|test/Rain100L/|Rain100L/}"), (100,)),
        },
        backgrounds=_EACH_ALONE,
        citation=_YANG,
        url=_YANG_URL,
        sources=(_PRENET, _RCDNET, "github.com/csdwren/PReNet issue 32"),
        traps=(
            _EDITIONS,
            _EXTRAS,
            "Nine pairs of test images share their background (byte-identical clean files): 100 "
            "pairs, 91 scenes.",
        ),
    ),
    "rain100h": Dataset(
        title="Rain100H, first edition",
        splits={
            "train": Split(
                _pairs("{train/|training/|train/small/|train/RainTrainH/|RainTrainH/}"),
                (1800, 1254),
            ),
            "test": Split(_pairs("{test/|testing/|test/small/|test/Rain100H/|Rain100H/}"), (100,)),
        },
        backgrounds=_EACH_ALONE,
        citation=_YANG,
        url=_YANG_URL,
        sources=(_PRENET, _RCDNET),
        traps=(
            "546 of the 1800 training pairs show backgrounds of the test set; PReNet leaves them "
            "out and trains on 1254. State which you use.",
            _EDITIONS,
            _EXTRAS,
        ),
    ),
    "rain100lh": Dataset(
        title="Rain100L and Rain100H together, first edition",
        splits={
            "train": Split(_pairs("{set}/{train/|training/}"), (2000, 1454)),
            "test": Split(_pairs("{set}/{test/|testing/}"), (200,)),
        },
        backgrounds="identical clean images of the two datasets are one scene with both rains",
        citation=_YANG,
        url=_YANG_URL,
        sources=(_PRENET, _RCDNET),
        traps=("Put both datasets into the root: Rain100L/train, Rain100H/train.",),
    ),
    "rain12": Dataset(
        title="Rain12",
        splits={
            "test": Split(
                (
                    Layout("{Rain12/|}{scene}_GT.{ext}", "{Rain12/|}{scene}_in.{ext}"),
                    *_pairs("{|test/|Rain12/|test/Rain12/|test12/|test/test12/}"),
                ),
                (12,),
            )
        },
        backgrounds=_EACH_ALONE,
        citation=("Li, Tan, Guo, Lu, Brown: Rain Streak Removal Using Layer Priors. CVPR 2016"),
        url="http://yu-li.github.io/paper/li_cvpr16_rain.zip",
        sources=(_RCDNET, "statistic/statistic_rain12.m of github.com/csdwren/PReNet"),
        traps=("Only for testing; papers use networks trained on Rain100L.",),
    ),
    "rain200l": Dataset(
        title="Rain200L (RainLight; Rain100L, second edition)",
        splits={
            "train": Split(_pairs("{train/|training/|rain_data_train_Light/}"), (1800,)),
            "test": Split(_pairs("{test/|testing/|rain_data_test_Light/}"), (200,)),
        },
        backgrounds=_EACH_ALONE,
        citation=_YANG,
        url=_YANG_URL,
        sources=(
            "datasets/readme.txt of github.com/cuiyixin555/AIDNet",
            _RECDERAIN,
            "README of github.com/cschenxiang/DRSformer",
        ),
        traps=(_EDITIONS,),
    ),
    "rain200h": Dataset(
        title="Rain200H (RainHeavy; Rain100H, second edition)",
        splits={
            "train": Split(_pairs("{train/|training/|rain_data_train_Heavy/}"), (1800,)),
            "test": Split(_pairs("{test/|testing/|rain_data_test_Heavy/}"), (200,)),
        },
        backgrounds=_EACH_ALONE,
        citation=_YANG,
        url=_YANG_URL,
        sources=(
            "datasets/readme.txt of github.com/cuiyixin555/AIDNet",
            _RECDERAIN,
            "README of github.com/XiaLiPKU/RESCAN",
        ),
        traps=(_EDITIONS,),
    ),
    "rain800": Dataset(
        title="Rain800",
        splits={
            "train": Split(
                (
                    Layout("{rain/|}{train|training}/{scene}.{ext}", clean_half="left"),
                    *_pairs("{train/|training/}"),
                ),
                (700,),
            ),
            "test": Split(
                (
                    Layout("{rain/|}{test|testing|test_syn}/{scene}.{ext}", clean_half="left"),
                    *_pairs("{test/|testing/}"),
                ),
                (100,),
            ),
        },
        backgrounds=_EACH_ALONE,
        citation=(
            "Zhang, Sindagi, Patel: Image De-raining Using a Conditional Generative Adversarial "
            "Network. arXiv 1701.05957; IEEE TCSVT 2020"
        ),
        url="https://github.com/hezhangsprinter/ID-CGAN",
        sources=(
            "github.com/XiaLiPKU/RESCAN issue 10 (clean on the left; 700 and 100)",
            "github.com/kuijiang94/MSPFN issue 2",
        ),
        traps=(
            "Side by side with the clean image on the left; Rain1200 has it on the right.",
            "The download also has real rainy images without ground truth (test_nature).",
        ),
    ),
    "rain1200": Dataset(
        title="Rain1200 (DID-MDN)",
        splits={
            "train": Split(
                (
                    Layout(
                        "{DID-MDN-training/|train/|training/|}Rain_{density}/"
                        "{train2018new/|}{photograph}.{ext}",
                        clean_half="right",
                    ),
                ),
                (12000,),
            ),
            "test": Split(
                (
                    Layout("{DID-MDN-test|test|testing}/{scene}.{ext}", clean_half="right"),
                    _folders("{DID-MDN-test/|test/|testing/}"),
                ),
                (1200,),
            ),
        },
        backgrounds=(
            "training files of one number in Rain_Light, Rain_Medium and Rain_Heavy if their clean "
            "halves are similar (compared, as no document states it); other files on their own"
        ),
        citation=(
            "Zhang, Patel: Density-aware Single Image De-raining using a Multi-stream Dense "
            "Network. CVPR 2018"
        ),
        url="https://github.com/hezhangsprinter/DID-MDN",
        sources=(
            "README and datasets/ of github.com/hezhangsprinter/DID-MDN (three folders of 4000)",
            "github.com/YC-Liang/DRT issue 5 (512x1024, rainy on the left)",
        ),
        traps=("Side by side with the clean image on the right; Rain800 has it on the left.",),
        near_identical=True,
    ),
    "rain14000": Dataset(
        title="Rain14000 (DDN; tested as Rain1400)",
        splits={
            "train": Split(
                (
                    Layout(
                        "{training/|train/|Rain12600/|train/Rain12600/}{clean}/{scene}.{ext}",
                        "{training/|train/|Rain12600/|train/Rain12600/}{rainy}/"
                        "{scene}_{version}.{ext}",
                    ),
                    Layout(
                        "{clean}/{scene}.{ext}",
                        "{rainy}/{scene}_{version}.{ext}",
                        numbers=range(1, 901),
                    ),
                ),
                (12600,),
            ),
            "test": Split(
                (
                    Layout(
                        "{testing/|test/|Rain1400/|test/Rain1400/}{clean}/{scene}.{ext}",
                        "{testing/|test/|Rain1400/|test/Rain1400/}{rainy}/{scene}_{version}.{ext}",
                    ),
                    Layout(
                        "{clean}/{scene}.{ext}",
                        "{rainy}/{scene}_{version}.{ext}",
                        numbers=range(901, 1001),
                    ),
                ),
                (1400,),
            ),
        },
        backgrounds="K_1 to K_14 are the 14 rains of background K; 900 train, 100 test",
        citation=(
            "Fu, Huang, Zeng, Huang, Ding, Paisley: Removing Rain from Single Images via a Deep "
            "Detail Network. CVPR 2017"
        ),
        url="https://xueyangfu.github.io/projects/cvpr2017.html",
        sources=(_PRENET, _RCDNET, "github.com/rajeevyasarla/Syn2Real issue 5"),
        traps=(
            "First published with 9100 training and 4900 test pairs, now 12600 and 1400.",
            "Rain13K splits some of these backgrounds differently into training and test: a "
            "network trained on one dataset may have seen test images of the other.",
        ),
    ),
    "spa": Dataset(
        title="SPA-Data",
        splits={
            "train": Split(
                (
                    Layout(
                        "{training/|train/|}real_world_gt/{photograph}/{photograph}_{place}.{ext}",
                        "{training/|train/|}real_world/{photograph}/{photograph}-{version}/"
                        "{photograph}-{version}_{place}.{ext}",
                    ),
                    *_pairs("{training/|train/}"),
                ),
                (638492, 638493, 638500),
            ),
            "test": Split(
                (
                    Layout(
                        "{testing/|test/|}{real_test_1000/|}gt/{scene}gt.{ext}",
                        "{testing/|test/|}{real_test_1000/|}rain/{scene}.{ext}",
                    ),
                    *_pairs("{testing/|test/|test/small/|real_test_1000/}"),
                ),
                (1000,),
            ),
        },
        backgrounds=(
            "real_world/274/274-14/274-14_0_3.png: video 274, frame 14, patch at (0, 3); the "
            "frames of one patch share real_world_gt/274/274_0_3.png"
        ),
        citation=(
            "Wang, Yang, Xu, Chen, Zhang, Lau: Spatial Attentive Single-Image Deraining with a "
            "High Quality Real Rain Dataset. CVPR 2019"
        ),
        url="https://stevewongv.github.io/derain-project.html",
        sources=(
            _RCDNET,
            "Train_Dataset_README.md of github.com/stevewongv/SPANet and its issues 23 and 24",
        ),
        traps=(
            "The paper states 29.5 thousand pairs; the download has 638,492 patches of them "
            "(638,493 lines in real_world.txt, 638,500 files, as counted in SPANet's issue 23).",
            "Patches of one video resemble each other: splits keep them together.",
        ),
    ),
    "rain13k": Dataset(
        title="Rain13K",
        splits={
            "train": Split(
                (_folders("{train/|train/Rain13K/|Rain13K/|Rain13K/train/}"),), (13712, 13711)
            ),
            **{
                name.lower(): Split((_folders(f"{{test/|}}{name}/"),), pairs)
                for name, pairs in {
                    "Test100": (98, 100),
                    "Rain100H": (100,),
                    "Rain100L": (100,),
                    "Test2800": (2800,),
                    "Test1200": (1200,),
                }.items()
            },
        },
        backgrounds=(
            "not told by names (each pair has its own clean file); pairs with identical clean "
            "images are one scene, such as several rains on one background of Rain14000"
        ),
        citation=(
            "Collected by Jiang, Wang, Yi, Chen, Huang, Luo, Ma, Jiang: Multi-Scale Progressive "
            "Fusion Network for Single Image Deraining. CVPR 2020; offered and made common by "
            "Zamir et al.: Multi-Stage Progressive Image Restoration. CVPR 2021"
        ),
        url="https://github.com/swz30/MPRNet",
        sources=(
            "github.com/swz30/MPRNet issues 23 (98, 2801) and 74 (13711)",
            "github.com/kuijiang94/MSPFN issue 2",
            "tools/dataset_converters/deraining of github.com/open-mmlab/mmagic (folders)",
        ),
        traps=(
            "Test100 has 98 pairs; papers call it 100.",
            "One training pair of unequal sizes was withdrawn: 13711 of 13712.",
            "Test2800 was once offered with a duplicate, 926_10(1).jpg.",
            "Test2800 is not the test split of Rain14000 (1400 images).",
        ),
    ),
    "real": Dataset(
        title="Real photographs of rain, without ground truth",
        splits={"test": Split((Layout("", "{path}.{ext}"),), ())},
        backgrounds="one per image",
        citation=(
            "Internet-Data: Wei, Meng, Zhao, Xu, Wu: Semi-supervised Transfer Learning for Image "
            "Rain Removal. CVPR 2019"
        ),
        url=(
            "https://github.com/wwzjer/Semi-supervised-IRR/tree/master/data/rainy_image_dataset/"
            "real_input"
        ),
        sources=(_RCDNET,),
        traps=(
            "Any folder of photographs will do; Internet-Data has 147.",
            "No clean images: neither for training nor for measuring PSNR.",
        ),
    ),
}
