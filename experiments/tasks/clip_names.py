"""Class names of the 20 CLIP image sets: what prompts call a class, and what sources call it.

Most sets name their classes well enough: their prompts take the names that come with the data
(`clip_sets.ClipSet.prompt_rule`). This file holds the others, in label order:

- `PROMPTS`: names for prompts that replace those of the data. The descriptive ones are those of
  Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
  (https://arxiv.org/abs/2103.00020), published with their code (prompts.md, MIT licence), with
  its misspellings: the experts' heads were built from them as they are.
- `LABELS`: per class, every name under which some source lists it. `clip_labels.order`
  compares them with what the data says, so that labels in another order are found out.
"""

from __future__ import annotations

import re

Names = tuple[str | tuple[str, ...], ...]  # per class a name, or synonyms to average

DIGITS = tuple("0123456789")

EUROSAT = (
    "annual crop land",
    "forest",
    "brushland or shrubland",
    "highway or road",
    "industrial buildings or commercial buildings",
    "pasture land",
    "permanent crop land",
    "residential buildings or homes or apartments",
    "river",
    "lake or sea",
)

GTSRB = (
    "red and white circle 20 kph speed limit",
    "red and white circle 30 kph speed limit",
    "red and white circle 50 kph speed limit",
    "red and white circle 60 kph speed limit",
    "red and white circle 70 kph speed limit",
    "red and white circle 80 kph speed limit",
    "end / de-restriction of 80 kph speed limit",
    "red and white circle 100 kph speed limit",
    "red and white circle 120 kph speed limit",
    "red and white circle red car and black car no passing",
    "red and white circle red truck and black car no passing",
    "red and white triangle road intersection warning",
    "white and yellow diamond priority road",
    "red and white upside down triangle yield right-of-way",
    "stop",
    "empty red and white circle",
    "red and white circle no truck entry",
    "red circle with white horizonal stripe no entry",
    "red and white triangle with exclamation mark warning",
    "red and white triangle with black left curve approaching warning",
    "red and white triangle with black right curve approaching warning",
    "red and white triangle with black double curve approaching warning",
    "red and white triangle rough / bumpy road warning",
    "red and white triangle car skidding / slipping warning",
    "red and white triangle with merging / narrow lanes warning",
    "red and white triangle with person digging / construction / road work warning",
    "red and white triangle with traffic light approaching warning",
    "red and white triangle with person walking warning",
    "red and white triangle with child and person walking warning",
    "red and white triangle with bicyle warning",
    "red and white triangle with snowflake / ice warning",
    "red and white triangle with deer warning",
    "white circle with gray strike bar no speed limit",
    "blue circle with white right turn arrow mandatory",
    "blue circle with white left turn arrow mandatory",
    "blue circle with white forward arrow mandatory",
    "blue circle with white forward or right turn arrow mandatory",
    "blue circle with white forward or left turn arrow mandatory",
    "blue circle with white keep right arrow mandatory",
    "blue circle with white keep left arrow mandatory",
    "blue circle with white arrows indicating a traffic circle",
    "white circle with gray strike bar indicating no passing for cars has ended",
    "white circle with gray strike bar indicating no passing for trucks has ended",
)

# In the label order of the official file.
FLOWERS102 = tuple(
    re.split(
        r";\s+",
        """
    pink primrose; hard-leaved pocket orchid; canterbury bells; sweet pea; english marigold;
    tiger lily; moon orchid; bird of paradise; monkshood; globe thistle; snapdragon; colt's foot;
    king protea; spear thistle; yellow iris; globe flower; purple coneflower; peruvian lily;
    balloon flower; giant white arum lily; fire lily; pincushion flower; fritillary; red ginger;
    grape hyacinth; corn poppy; prince of wales feathers; stemless gentian; artichoke;
    sweet william; carnation; garden phlox; love in the mist; mexican aster; alpine sea holly;
    ruby-lipped cattleya; cape flower; great masterwort; siam tulip; lenten rose; barbeton daisy;
    daffodil; sword lily; poinsettia; bolero deep blue; wallflower; marigold; buttercup;
    oxeye daisy; common dandelion; petunia; wild pansy; primula; sunflower; pelargonium;
    bishop of llandaff; gaura; geranium; orange dahlia; pink and yellow dahlia; cautleya spicata;
    japanese anemone; black-eyed susan; silverbush; californian poppy; osteospermum; spring crocus;
    bearded iris; windflower; tree poppy; gazania; azalea; water lily; rose; thorn apple;
    morning glory; passion flower; lotus; toad lily; anthurium; frangipani; clematis; hibiscus;
    columbine; desert-rose; tree mallow; magnolia; cyclamen; watercress; canna lily; hippeastrum;
    bee balm; air plant; foxglove; bougainvillea; camellia; mallow; mexican petunia; bromelia;
    blanket flower; trumpet creeper; blackberry lily
        """.strip(),
    )
)

PCAM = ("lymph node", "lymph node containing metastatic tumor tissue")

CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

STL10 = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip

# As torchvision spells them; other sources write "T - shirt / top".
FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip

KMNIST = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

RENDERED_SST2 = ("negative", "positive")

# In the order of the labels, which is alphabetical in English: angry, disgust, fear, happy,
# neutral, sad, surprise.
FER2013 = (
    ("angry",),
    ("disgusted",),
    ("fearful",),
    ("happy", "smiling"),
    ("neutral", "bored"),
    ("sad", "depressed"),
    ("surprised", "shocked", "spooked"),
)

# The heads that come with the checkpoints of TALL-masks (Wang et al. 2024) and of SyMerge were
# built with each list of synonyms printed into the prompt ("a photo of a ['happy', 'smiling']
# looking face."), and in prompts.md's order, where "neutral" is last: with alphabetical labels,
# rows 4 to 6 stand for other emotions than their prompts say. The experts were trained against
# these very rows. Zero-shot accuracy of ViT-B/32: 39.0 % so, 41.25 % with one word per class.
FER2013_PRINTED = tuple(str(list(FER2013[row])) for row in (0, 1, 2, 3, 5, 6, 4))

PROMPTS: dict[str, Names] = {
    "eurosat": EUROSAT,
    "svhn": DIGITS,
    "gtsrb": GTSRB,
    "mnist": DIGITS,
    "fer2013": FER2013,
    "flowers102": FLOWERS102,
    "pcam": PCAM,
    "stl10": STL10,
    "cifar10": CIFAR10,
    "emnist": DIGITS,
    "fashion_mnist": FASHION_MNIST,
    "kmnist": KMNIST,
    "rendered_sst2": RENDERED_SST2,
}

# Per set: lists of names in label order, each as some source gives it.
LABELS: dict[str, tuple[tuple[str, ...], ...]] = {
    "eurosat": (
        (
            "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
            "PermanentCrop", "Residential", "River", "SeaLake",
        ),
        EUROSAT,
    ),
    "svhn": (DIGITS,),
    "gtsrb": (GTSRB,),
    "mnist": (DIGITS,),
    "fer2013": (
        ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
        ("anger", "disgusted", "fearful", "happiness", "neutral", "sadness", "surprised"),
    ),
    "flowers102": (FLOWERS102,),
    "pcam": (("normal", "tumor"), ("false", "true"), ("no tumor", "has tumor"), PCAM),
    "stl10": (STL10,),
    "cifar10": (CIFAR10,),
    "emnist": (DIGITS,),
    "fashion_mnist": (FASHION_MNIST,),
    "kmnist": (KMNIST, tuple("おきすつなはまやれを")),
    "rendered_sst2": (RENDERED_SST2,),
}  # fmt: skip

# Cars are numbered as in the official list, which is nearly sorted: in a sorted one, 0 and 5 would
# be others.
CARS_ANCHORS = {
    0: "AM General Hummer SUV 2000",
    5: "Acura Integra Type R 2001",
    195: "smart fortwo Convertible 2012",
}
