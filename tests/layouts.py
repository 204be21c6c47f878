"""A small tree in the layout and naming of each data set, from one declaration each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

HEIGHT, WIDTH = 24, 32
IMAGE, MASK, INDEX, BLANK = "image", "mask", "index", "blank"


@dataclass
class Layout:
    """Files of a set and what must be read from them.

    ``files`` are relative to the data root: path -> IMAGE, MASK (0/255), INDEX (0/3), BLANK (all 0), or a text.
    """

    files: dict[str, str]
    normal: int
    anomalous: int
    masks: int
    categories: list[str]
    train: int = 0
    unlabelled: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def write(root: Path, files: dict[str, str]) -> None:
    """Write the files; pictures of 24 x 32 pixels, whose masks are anomalous in the upper left 6 x 8."""
    rng = np.random.default_rng(3)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
        if content == IMAGE:
            pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        elif content in (MASK, INDEX):
            pixels[:6, :8] = 255 if content == MASK else 3
        elif content != BLANK:
            path.write_text(content)
            continue
        if path.suffix == ".mat":
            truth = np.ones((HEIGHT, WIDTH), np.uint8)
            truth[:6, :8], truth[-1] = 2, 3
            scipy.io.savemat(path, {"groundTruth": {"Segmentation": truth}})
        else:
            Image.fromarray(pixels).save(path, format={".jpg": "JPEG"}.get(path.suffix.lower()))


def mvtec_like(root: str, defect: str = "bad", category: str = "cat", good: str = "good", suffix: str = "_mask.png"):
    """One category as MVTec AD has it: 1 training image, 2 normal and 2 anomalous test images with 1 mask."""
    return {
        f"{root}/{category}/train/{good}/000.png": IMAGE,
        f"{root}/{category}/test/{good}/000.png": IMAGE,
        f"{root}/{category}/test/{good}/001.PNG": IMAGE,
        f"{root}/{category}/test/{defect}/000.png": IMAGE,
        f"{root}/{category}/test/{defect}/001.png": IMAGE,
        f"{root}/{category}/ground_truth/{defect}/000{suffix}": MASK,
    }


def polyps(root: str, images: str = "images", masks: str = "masks", suffix: str = ".png"):
    """Three images, two with masks."""
    return {f"{root}/{images}/{n}{suffix}": IMAGE for n in range(1, 4)} | {
        f"{root}/{masks}/{n}{suffix}": MASK for n in range(1, 3)
    }


VISA_CSV = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0000.JPG,
candle,test,normal,candle/Data/Images/Normal/0001.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png
pcb1,test,anomaly,pcb1/Data/Images/Anomaly/000.JPG,pcb1/Data/Masks/Anomaly/000.png
"""
VISA = {
    "visa/candle/Data/Images/Normal/0000.JPG": IMAGE,
    "visa/candle/Data/Images/Normal/0001.JPG": IMAGE,
    "visa/candle/Data/Images/Anomaly/000.JPG": IMAGE,
    "visa/candle/Data/Masks/Anomaly/000.png": INDEX,
    "visa/candle/image_anno.csv": "image,label,mask\n",
    "visa/pcb1/Data/Images/Anomaly/000.JPG": IMAGE,
    "visa/pcb1/Data/Masks/Anomaly/000.png": INDEX,
    "visa/split_csv/1cls.csv": VISA_CSV,
}


def real_iad() -> dict[str, str]:
    """One object with a good and a scratched item."""
    base = "real_iad/realiad_1024/audiojack"
    ok, bad = "OK/S0001/audiojack_0001_OK_C1_1.jpg", "NG/HS/S0002/audiojack_0002_NG_HS_C1_2.jpg"
    mask, train = bad.replace(".jpg", "_mask.png"), ok.replace("S0001", "S0003")

    def row(kind: str, image: str, mask: str | None = None) -> dict[str, str | None]:
        return {"category": "audiojack", "anomaly_class": kind, "image_path": image, "mask_path": mask}

    splits = {
        "meta": {"prefix": "", "normal_class": "OK", "pre_transform": ""},
        "train": [row("OK", train)],
        "test": [row("OK", ok), row("HS", bad, mask)],
    }
    files = {f"{base}/{path}": IMAGE for path in (ok, bad, train)} | {f"{base}/{mask}": MASK}
    return files | {"real_iad/realiad_jsons/realiad_jsons/audiojack.json": json.dumps(splits)}


META = {
    "train": {"bottle": [{"img_path": "bottle/train/good/000.png", "mask_path": "", "cls_name": "bottle",
                          "specie_name": "good", "anomaly": 0}]},
    "test": {"bottle": [
        {"img_path": "bottle/test/good/000.png", "mask_path": "", "cls_name": "bottle", "specie_name": "good",
         "anomaly": 0},
        {"img_path": "bottle/test/bad/000.png", "mask_path": "bottle/ground_truth/bad/000_mask.png",
         "cls_name": "bottle", "specie_name": "bad", "anomaly": 1},
    ]},
}  # fmt: skip


def ksdd2() -> dict[str, str]:
    """A normal and an anomalous image in test, one in train, and the stray copy of some archives."""
    files = {}
    for name, mask in (("train/10000", BLANK), ("test/20000", BLANK), ("test/20001", MASK)):
        files |= {f"ksdd2/{name}.png": IMAGE, f"ksdd2/{name}_GT.png": mask}
    return files | {"ksdd2/train/10301 (copy).png": IMAGE}


def bmad(name: str, images: str, masks: str | None, split: str = "test", train: str = "train") -> Layout:
    """A set of BMAD: ``images`` with a place for good/Ungood, ``masks`` the folder of masks."""
    files = {f"{name}/{train}/good/0.png": IMAGE}
    for kind, number in (("good", 1), ("Ungood", 2), ("Ungood", 3)):
        files[f"{name}/{split}/{images.format(kind)}/{number}.png"] = IMAGE
    if masks:
        files[f"{name}/{split}/{masks}/2.png"] = MASK
    subject = {"brain": "brain", "liver": "liver", "resc": "retina", "oct2017": "retina", "rsna": "chest",
               "camelyon": "histopathology"}[name.split("/")[0].removeprefix("bmad_")]  # fmt: skip
    return Layout(files, 1, 2, int(masks is not None), [subject], train=1)


LOCO = {
    "mvtec_loco/pushpins/train/good/000.png": IMAGE,
    "mvtec_loco/pushpins/validation/good/000.png": IMAGE,
    "mvtec_loco/pushpins/test/good/000.png": IMAGE,
    "mvtec_loco/pushpins/test/logical_anomalies/000.png": IMAGE,
    "mvtec_loco/pushpins/test/structural_anomalies/000.png": IMAGE,
    "mvtec_loco/pushpins/ground_truth/logical_anomalies/000/000.png": INDEX,
    "mvtec_loco/pushpins/ground_truth/logical_anomalies/000/001.png": INDEX,
    "mvtec_loco/pushpins/ground_truth/structural_anomalies/000/000.png": INDEX,
    "mvtec_loco/pushpins/defects_config.json": "[]",
}
AD2 = {
    "mvtec_ad2/can/train/good/000_regular.png": IMAGE,
    "mvtec_ad2/can/validation/good/000_regular.png": IMAGE,
    "mvtec_ad2/can/test_public/good/000_shift_1.png": IMAGE,
    "mvtec_ad2/can/test_public/bad/000_overexposed.png": IMAGE,
    "mvtec_ad2/can/test_public/ground_truth/bad/000_overexposed_mask.png": MASK,
    "mvtec_ad2/can/test_private/000_regular.png": IMAGE,
    "mvtec_ad2/can/test_private_mixed/000_mixed.png": IMAGE,
}
BTAD = {
    "btad/BTech_Dataset_transformed/03/train/ok/0000.bmp": IMAGE,
    "btad/BTech_Dataset_transformed/03/test/ok/0000.bmp": IMAGE,
    "btad/BTech_Dataset_transformed/03/test/ko/0000.bmp": IMAGE,
    "btad/BTech_Dataset_transformed/03/ground_truth/ko/0000.bmp": MASK,
    "btad/BTech_Dataset_transformed/02/test/ko/0000.png": IMAGE,
    "btad/BTech_Dataset_transformed/02/ground_truth/ko/0000.png": MASK,
}
KSDD = {
    "ksdd/kos01/Part0.jpg": IMAGE, "ksdd/kos01/Part0_label.bmp": BLANK,
    "ksdd/kos01/Part5.jpg": IMAGE, "ksdd/kos01/Part5_label.bmp": MASK,
    "ksdd/kos02/Part0.jpg": IMAGE, "ksdd/kos02/Part0_label.bmp": BLANK,
}  # fmt: skip
DAGM = {
    "dagm/Class1/Train/0001.PNG": IMAGE,
    "dagm/Class1/Train/Label/Labels.txt": "1",
    "dagm/Class1/Test/0001.PNG": IMAGE,
    "dagm/Class1/Test/0002.PNG": IMAGE,
    "dagm/Class1/Test/Label/0002_label.PNG": MASK,
    "dagm/Class10/Test/0002.PNG": IMAGE,
}
MAGNETIC = {
    "magnetic_tile/MT_Free/Imgs/exp1_num_4727.jpg": IMAGE,
    "magnetic_tile/MT_Free/Imgs/exp1_num_4727.png": BLANK,
    "magnetic_tile/MT_Uneven/Imgs/exp1_num_1.jpg": IMAGE,
    "magnetic_tile/MT_Uneven/Imgs/exp1_num_1.png": BLANK,
    "magnetic_tile/MT_Crack/Imgs/exp1_num_1.jpg": IMAGE,
    "magnetic_tile/MT_Crack/Imgs/exp1_num_1.png": MASK,
}
RAIL = "rsdds/RSDDs dataset 数据集/Type-II RSDDs dataset"
RSDDS = {
    f"{RAIL}/Rail surface images/rail_1.jpg": IMAGE,
    f"{RAIL}/GroundTruth/rail_1.jpg": MASK,
    f"{RAIL.replace('II', 'I')}/Rail surface images/rail_1.jpg": IMAGE,
    f"{RAIL.replace('II', 'I')}/GroundTruth/rail_1.jpg": MASK,
}
CRACKS = {
    "crackforest/image/001.jpg": IMAGE,
    "crackforest/image/002.jpg": IMAGE,
    "crackforest/groundTruth/001.mat": MASK,
}
ELPV = {
    "elpv/images/cell0001.png": IMAGE,
    "elpv/images/cell0002.png": IMAGE,
    "elpv/images/cell0003.png": IMAGE,
    "elpv/labels.csv": (
        "images/cell0001.png  1.0   mono\nimages/cell0002.png  0.3333333333333333   poly\n"
        "images/cell0003.png  0.0 mono\n"
    ),
}
PCB = {
    "deeppcb/PCBData/group00041/00041/00041000_test.jpg": IMAGE,
    "deeppcb/PCBData/group00041/00041/00041000_temp.jpg": IMAGE,
    "deeppcb/PCBData/group00041/00041_not/00041000.txt": "0 0 8 6 1\n",
    "deeppcb/PCBData/group00041/00041/00041001_test.jpg": IMAGE,
    "deeppcb/PCBData/group00041/00041/00041001_temp.jpg": IMAGE,
    "deeppcb/PCBData/group00041/00041_not/00041001.txt": "0 0 8 6 1\n",
    "deeppcb/PCBData/test.txt": "group00041/00041/00041000.jpg group00041/00041_not/00041000.txt\n",
    "deeppcb/PCBData/trainval.txt": "group00041/00041/00041001.jpg group00041/00041_not/00041001.txt\n",
}
BUSI = {
    "busi/Dataset_BUSI_with_GT/normal/normal (1).png": IMAGE,
    "busi/Dataset_BUSI_with_GT/normal/normal (1)_mask.png": BLANK,
    "busi/Dataset_BUSI_with_GT/benign/benign (1).png": IMAGE,
    "busi/Dataset_BUSI_with_GT/benign/benign (1)_mask.png": MASK,
    "busi/Dataset_BUSI_with_GT/benign/benign (1)_mask_1.png": BLANK,
    "busi/Dataset_BUSI_with_GT/malignant/malignant (1).png": IMAGE,
    "busi/Dataset_BUSI_with_GT/malignant/malignant (1)_mask.png": MASK,
}
MRI = {
    f"brainmri/{folder}{name}": IMAGE
    for folder in ("", "brain_tumor_dataset/")
    for name in ("yes/Y1.jpg", "yes/Y100.JPG", "no/1 no.jpeg")
}
BR35H = {
    "br35h/yes/y0.jpg": IMAGE,
    "br35h/no/no0.jpg": IMAGE,
    "br35h/pred/pred0.jpg": IMAGE,
    "br35h/Br35H-Mask-RCNN/TRAIN/y0.jpg": IMAGE,
}
HEADCT = {
    "headct/head_ct/head_ct/000.png": IMAGE,
    "headct/head_ct/head_ct/001.png": IMAGE,
    "headct/labels.csv": "id, hemorrhage\n0,1\n1,0\n",
}
ISIC = {
    "isic2016/ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg": IMAGE,
    "isic2016/ISBI2016_ISIC_Part1_Test_Data/ISIC_0000012.jpg": IMAGE,
    "isic2016/ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png": MASK,
}
NODULES = {
    "tn3k/Thyroid Dataset/tn3k/test-image/0000.jpg": IMAGE,
    "tn3k/Thyroid Dataset/tn3k/test-mask/0000.jpg": MASK,
    "tn3k/Thyroid Dataset/tn3k/trainval-image/0000.jpg": IMAGE,
    "tn3k/Thyroid Dataset/tn3k/trainval-mask/0000.jpg": MASK,
}
COMMUTATOR = "electrical commutators"

LAYOUTS = {
    "mvtec": Layout(mvtec_like("mvtec"), 2, 2, 1, ["cat"], train=1),
    "mpdd": Layout(mvtec_like("mpdd", suffix=".png"), 2, 2, 1, ["cat"], train=1),
    "dtd_synthetic": Layout(mvtec_like("dtd_synthetic", category="Blotchy_099"), 2, 2, 1, ["Blotchy_099"], train=1),
    "mvtec_loco": Layout(LOCO, 1, 2, 2, ["pushpins"], train=1),
    "mvtec_ad2": Layout(AD2, 1, 1, 1, ["can"], train=1, unlabelled=2),
    "btad": Layout(BTAD, 1, 2, 2, ["02", "03"], train=1),
    "visa": Layout(VISA, 1, 2, 2, ["candle", "pcb1"], train=1),
    "real_iad": Layout(real_iad(), 1, 1, 1, ["audiojack"], train=1),
    "ksdd": Layout(KSDD, 2, 1, 1, [COMMUTATOR]),
    "ksdd_anomalyclip": Layout(
        mvtec_like("ksdd_anomalyclip", "defect", COMMUTATOR, suffix=".png"), 2, 2, 1, [COMMUTATOR], train=1
    ),
    "ksdd_adaclip": Layout(mvtec_like("ksdd_adaclip", "defect", COMMUTATOR), 2, 2, 1, [COMMUTATOR], train=1),
    "ksdd2": Layout(ksdd2(), 1, 1, 1, ["surface"], train=1),
    "dagm": Layout(DAGM, 2, 1, 1, ["Class1", "Class10"], train=1),
    "magnetic_tile": Layout(MAGNETIC, 1, 2, 2, ["magnetic_tile"]),
    "rsdds": Layout(RSDDS, 0, 2, 2, ["rail"]),
    "crackforest": Layout(CRACKS, 0, 1, 1, ["road"], unlabelled=1),
    "elpv": Layout(ELPV, 2, 1, 0, ["solar_cell"]),
    "deeppcb": Layout(PCB, 1, 1, 1, ["pcb"], train=2),
    "brainmri": Layout(MRI, 1, 2, 0, ["brain"]),
    "br35h": Layout(BR35H, 1, 1, 0, ["brain"]),
    "headct": Layout(HEADCT, 1, 1, 0, ["head"]),
    "bmad_brain": bmad("bmad_brain/BraTS2021_slice", "{}/img", "Ungood/label"),
    "bmad_liver": bmad("bmad_liver/hist_DIY", "img/{}", "label/Ungood"),
    "bmad_resc": bmad("bmad_resc/RESC", "test/{}", "test_label/Ungood", "Test", "Train/train"),
    "bmad_oct2017": bmad("bmad_oct2017/OCT2017", "{}", None),
    "bmad_rsna": bmad("bmad_rsna/Chest-RSNA", "{}", None),
    "bmad_camelyon": bmad("bmad_camelyon/camelyon16_256", "{}", None),
    "isic2016": Layout(ISIC, 0, 2, 1, ["skin"]),
    "cvc_colondb": Layout(polyps("cvc_colondb"), 0, 3, 2, ["colon"]),
    "cvc_clinicdb": Layout(polyps("cvc_clinicdb", "Original", "Ground Truth", ".tif"), 0, 3, 2, ["colon"]),
    "kvasir": Layout(polyps("kvasir/Kvasir-SEG", suffix=".jpg"), 0, 3, 2, ["colon"]),
    "endo": Layout(polyps("endo/EndoTect_2020_Segmentation_Test_Dataset", suffix=".jpg"), 0, 3, 2, ["colon"]),
    "tn3k": Layout(NODULES, 0, 1, 1, ["thyroid"], train=1),
    "busi": Layout(BUSI, 1, 2, 2, ["breast"]),
    "meta_json": Layout(
        mvtec_like(".", "bad", "bottle") | {"meta.json": json.dumps(META)}, 1, 1, 1, ["bottle"], train=1
    ),
}
