"""The names of COCO's 80 classes of things, in the order of their numbers (Lin et al. 2014), and
of the labels of Pascal VOC, which torchvision's segmenters have.
"""

CLASSES = tuple(
    """person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant
    |stop sign|parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe
    |backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat
    |baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl
    |banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant
    |bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink
    |refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush""".replace(
        "\n    |", "|"
    ).split("|")
)

VOC = tuple(
    """background|aeroplane|bicycle|bird|boat|bottle|bus|car|cat|chair|cow|diningtable|dog|horse
    |motorbike|person|pottedplant|sheep|sofa|train|tvmonitor""".replace("\n    |", "|").split("|")
)
# COCO's name of a class -> VOC's, where they differ.
IN_VOC = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}
