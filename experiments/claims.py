"""The paper's claims about images, texts and scenes, each with a test of our records.

A claim is put to every setting by itself. Its test is a pure function of the records (`judging`,
`judges`, `judges_data`); what the numbers were in the paper stands beside it. Means are over tasks,
of each task's metric in percent; a difference below 0.3 points counts as none unless said
otherwise.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from experiments import judges, judges_data, judges_dense
from experiments.judging import Missing, Test, best_is, improves
from experiments.reasons import REASONS
from experiments.records import Record

HELD, NOT_HELD, OPEN = "held", "did not hold", "not testable"

# Setting → its name, and what it is.
SETTINGS = {
    "tiny": ("Embedded world", "generated tasks, a tiny CLIP, RoBERTa and ResNet"),
    "images": ("Real data", "public image sets at 32 × 32, GLUE's texts, NYUv2; the tiny models"),
    "checkpoints": (
        "Paper's experts",
        "CLIP ViT-B/32 and L/14, RoBERTa-base, ResNet-50, their test sets",
    ),
}
# What records call their setting → the one of these it is.
SAME = {"texts": "images", "scenes": "images"}


class Claim(NamedTuple):
    """One claim of the paper.

    Attributes:
        key: unique.
        text: the claim.
        rule: what has to come out of a record for it to hold.
        source: the table or figure.
        paper: the paper's numbers.
        experiment: whose records are asked.
        test: returns what they say; raises `Missing`.
    """

    key: str
    text: str
    rule: str
    source: str
    paper: str
    experiment: str
    test: Test


class Verdict(NamedTuple):
    """What one setting's records say of a claim.

    Attributes:
        claim: the claim.
        setting: of the records.
        verdict: `HELD`, `NOT_HELD` or `OPEN`.
        ours: the numbers; of a claim that cannot be tested, the reason.
        why: why it did not hold, as far as that is known.
    """

    claim: Claim
    setting: str
    verdict: str
    ours: str
    why: str = ""


def judge(found: Iterable[Record]) -> list[Verdict]:
    """Returns the verdict on every claim in every setting, claim by claim."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        setting = SAME.get(record["setting"], record["setting"])
        groups.setdefault((record["experiment"], setting), []).append(record)
    return [_verdict(claim, setting, groups) for claim in CLAIMS for setting in SETTINGS]


def as_json(verdicts: Iterable[Verdict]) -> list[dict[str, str]]:
    """Returns the verdicts as claims.json has them."""
    return [
        {
            "claim": one.claim.text,
            "source": one.claim.source,
            "paper": one.claim.paper,
            "ours": one.ours,
            "setting": one.setting,
            "verdict": one.verdict,
        }
        for one in verdicts
    ]


def _verdict(claim: Claim, setting: str, groups: Mapping[tuple[str, str], list[Record]]) -> Verdict:
    own = groups.get((claim.experiment, setting))
    if not own:
        return Verdict(claim, setting, OPEN, f"no record of {claim.experiment}")
    try:
        held, ours = claim.test(own)
    except Missing as reason:
        return Verdict(claim, setting, OPEN, str(reason))
    if held:
        return Verdict(claim, setting, HELD, ours)
    return Verdict(claim, setting, NOT_HELD, ours, REASONS.get((claim.key, setting), ""))


CLAIMS = (
    Claim("best-of-all", "SyMerge is better than all merging methods that need no adaptation.",
          "its mean is above that of every training-free method of Table 1",
          "Table 1", "90.1; best other EMR 88.7 (ViT-B/32, 8 tasks)",
          "vision", best_is("symerge", judges.TRAINING_FREE)),
    Claim("best-adaptive", "SyMerge is better than all other methods that adapt at test time.",
          "its mean is above AdaMerging, Surgery, WEMoE and ProbSurgery, as far as they were run",
          "Table 1", "90.1; best other WEMoE 89.4 (ViT-B/32, 8 tasks)",
          "vision", best_is("symerge", judges.TEST_TIME)),
    Claim("near-experts", "SyMerge comes close to the individual experts.",
          "at least 98 % of the experts' scores, averaged over tasks",
          "Table 1", "90.1 of 90.5, 88.7 of 89.5, 88.6 of 90.4 with 8, 14, 20 tasks: 98 % or more",
          "vision", judges.near_experts("symerge", 98.0)),
    Claim("task-arithmetic", "Adding task vectors helps, and leaves a wide gap to the experts.",
          "Task Arithmetic is above the pre-trained model, by less than 75 % of the experts' lead",
          "Table 1", "48.0, 69.1, 90.5: 50 % of the way",
          "vision", judges.closes_part_of_the_gap),
    Claim("ties", "TIES improves on Task Arithmetic with 8 tasks.",
          "its mean is higher", "Table 1", "72.9 against 69.1",
          "vision", improves("ties", "task_arithmetic", tasks=8)),
    Claim("spectral", "Merging singular vectors (TSV-M, Iso-CTS) beats merging entry by entry.",
          "both means are above Task Arithmetic, TIES, PCB, LiNeS and Consensus TA",
          "Table 1", "84.0 and 84.2; best other PCB 75.6",
          "vision", judges.spectral_methods_lead),
    Claim("emr", "EMR, which keeps a mask per task, is the best method without adaptation.",
          "its mean is above the other training-free methods of Table 1",
          "Table 1", "88.7; next Iso-CTS 84.2",
          "vision", best_is("emr", judges.TRAINING_FREE[:-1])),
    Claim("adamerging", "Minimising entropy over coefficients (AdaMerging) beats Task Arithmetic.",
          "its mean is higher", "Table 1", "80.1 against 69.1",
          "vision", improves("adamerging", "task_arithmetic")),
    Claim("surgery", "Correcting features (Surgery) improves on AdaMerging.",
          "its mean is higher", "Table 1", "87.5 against 80.1",
          "vision", improves("surgery", "adamerging")),
    Claim("more-tasks", "With more tasks SyMerge loses little, training-free merging much.",
          "from the fewest to the most tasks SyMerge loses less than half of what Task Arithmetic "
          "loses, in percent of the experts' scores",
          "Table 1", "8 to 20 tasks: 99.6 to 98.0 %, Task Arithmetic 76.4 to 67.3 %",
          "vision", judges.more_tasks),
    Claim("seeds", "SyMerge's result hardly depends on the seed.",
          "standard deviation over seeds of at most 0.4 points, the paper's largest",
          "Table 1", "± 0.0 to ± 0.4 over five runs", "vision", judges.seeds_agree),
    Claim("larger-model", "A larger encoder merges to a higher accuracy.",
          "SyMerge's mean is higher with ViT-L/14 than with ViT-B/32",
          "Table 1, Figure E(a)", "94.1 against 90.1", "vision", judges.larger_model),
    Claim("both-parts", "Coefficients and heads together beat either alone.",
          "SyMerge's mean is above both, at every number of tasks that was run",
          "Table 5", "90.1 against 84.6 and 88.2 with 8 tasks, 88.6 against 81.6 and 75.0 with 20",
          "components", judges.both_beat_one),
    Claim("heads-first", "With 8 tasks heads alone do better than coefficients alone.",
          "the mean of heads alone is higher", "Table 5", "88.2 against 84.6",
          "components", improves("symerge_head", "symerge_coefficients", tasks=8)),
    Claim("heads-fade", "With more tasks heads alone lose their lead over coefficients alone.",
          "their lead is smaller with the most tasks than with the fewest",
          "Table 5", "+3.6, +0.6, −6.6 with 8, 14, 20 tasks", "components",
          judges.heads_fall_behind),
    Claim("any-layer", "Any single block adapts as well as the classifier.",
          "no block is more than one point below the classifier",
          "Figure 5, Table B", "blocks 90.0 to 90.5, classifier 90.1",
          "layers", judges.any_layer_will_do),
    Claim("one-layer-helps", "One task-specific layer of any kind improves on coefficients alone.",
          "the lowest single layer is above coefficients alone",
          "Figure 5, Table B", "90.0 or more against 84.6", "layers", judges.any_layer_helps),
    Claim("many-layers", "Many task-specific blocks at once do worse than one.",
          "early, late and all blocks are below the mean of the single layers",
          "Figure 5, Table B", "89.4, 88.4, 86.2 against 90.3 on average",
          "layers", judges.many_layers_hurt),
    Claim("distances", "For coefficients alone, distances guide worse than distribution losses.",
          "L1, smooth L1, L2 and cosine are below KL, JS, CE and entropy on average",
          "Figure C", "shown without numbers", "losses", judges.distances_are_worse),
    Claim("most-losses", "With heads, most losses to the expert's output do well.",
          "at least five of the seven end within 2 points of the best",
          "Figure C", "shown without numbers", "losses", judges.most_losses_do_well),
    Claim("entropy-fails", "With heads, entropy minimisation breaks down.",
          "it is below every other loss with heads, and below itself without heads",
          "Figure C", "shown without numbers", "losses", judges.entropy_fails),
    Claim("bound", "Training with the true labels is the upper bound of all losses.",
          "no loss with heads is above it", "Figure C", "shown without numbers",
          "losses", judges.labels_are_the_bound),
    Claim("proxy", "Experts' labels rank images more like the true loss does than entropy.",
          "before adaptation their Spearman correlation is higher on every task",
          "Figure 4, Table C", "0.930 against 0.805 on average, higher on 8 of 8 tasks (ViT-B/32)",
          "proxy_loss", judges_data.labels_are_the_better_proxy),
    Claim("proxy-entropy", "Minimising entropy makes it a worse stand-in for the true loss.",
          "the correlation falls on average and on most tasks",
          "Figure 4, Table C", "0.805 to 0.531 on average, lower on 7 of 8 tasks (ViT-B/32)",
          "proxy_loss", judges_data.entropy_drifts_off),
    Claim("proxy-labels", "Self-labelling stays close to the true loss throughout.",
          "the correlation falls by at most 0.01 on average",
          "Figure 4, Table C", "0.930 to 0.945 on average (ViT-B/32)",
          "proxy_loss", judges_data.labels_stay_close),
    Claim("transfer-ta", "SyMerge's heads improve Task Arithmetic without further training.",
          "the mean on the merged encoder rises", "Table 4", "69.1 to 79.6",
          "transfer", judges.adapted_heads_help("task_arithmetic", "accuracy")),
    Claim("transfer-ada", "SyMerge's heads improve AdaMerging without further training.",
          "the mean on the merged encoder rises", "Table 4", "80.1 to 87.7",
          "transfer", judges.adapted_heads_help("adamerging", "accuracy")),
    Claim("transfer-cross-ta", "SyMerge's heads suit other tasks' encoders too (Task Arithmetic).",
          "the cross-task mean rises", "Table 4", "49.8 to 54.8",
          "transfer", judges.adapted_heads_help("task_arithmetic", "cross_accuracy")),
    Claim("transfer-cross-ada", "SyMerge's heads suit other tasks' encoders too (AdaMerging).",
          "the cross-task mean rises", "Table 4", "50.1 to 54.1",
          "transfer", judges.adapted_heads_help("adamerging", "cross_accuracy")),
    Claim("supervisor", "The closer the supervisor is to the expert, the better SyMerge becomes.",
          "higher at the expert than at the pre-trained model, rising in two thirds of steps",
          "Figure 6a", "shown without numbers", "supervisor", judges.better_supervisor),
    Claim("supervisor-best", "A supervisor just short of the expert is best, by a little.",
          "the best is not the expert, which is at most a point below it",
          "Figure 6a", "90.2 at 0.8, 90.1 at 1", "supervisor", judges.weaker_is_best),
    Claim("start", "Training coefficients too makes the start matter less than heads alone.",
          "over the starts, the ends lie less than half as far apart",
          "Figure 6b", "shown without numbers", "initialisation", judges_data.start_matters_less),
    Claim("start-learned", "A learned start changes Surgery much and SyMerge hardly.",
          "AdaMerging's coefficients as the start move Surgery's mean by more than SyMerge's",
          "Figure E(c)", "shown without numbers",
          "initialisation", judges_data.learned_start_matters_less),
    Claim("soon", "SyMerge is near its final accuracy after a fifth of the iterations.",
          "nine tenths of the gain are there by then",
          "Figure E(a)", "near the end after 100 of 500 iterations",
          "curves", judges_data.soon_there),
    Claim("rates", "All learning rates but the lowest end alike.",
          "all but the lowest end within 2 points of each other, the lowest below them",
          "Figure E(b)", "shown without numbers", "curves", judges_data.rates_end_alike),
    Claim("sequential", "One update per task is better than one for all tasks (AdaMerging).",
          "the mean of sequential updates is higher", "Appendix A.1", "81.6 against 80.1",
          "sequential", improves("adamerging_sequential", "adamerging")),
    Claim("sequential-symerge", "SyMerge, too, gains from one update per task.",
          "its mean is higher than with one update for all tasks",
          "Appendix A.1", "stated without numbers",
          "sequential", improves("symerge", "symerge_joint")),
    Claim("corruption", "Under corruption every method without adaptation falls behind those with.",
          "on corrupted images the best of the former is below the lowest of the latter",
          "Figure 1, Table A", "65.0 or less against 67.2 or more",
          "corruption", judges.training_free_fall),
    Claim("corruption-best", "Under corruption SyMerge is the best merged model.",
          "its mean on corrupted images is the highest",
          "Figure 1, Table A", "73.7; next Surgery 68.8", "corruption", judges.robust),
    Claim("corruption-experts", "Under corruption SyMerge stays close to the experts.",
          "at most two points below them on corrupted images",
          "Table A", "73.7 of 74.5", "corruption", judges.robust_as_experts),
    Claim("cross-merge", "Encoders that serve other tasks well also merge well.",
          "r above 0.5 with p below 0.05 over the encoders",
          "Figure 2", "r = 0.863, p < 0.001 over 20 encoders",
          "cross_task", judges_data.cross_predicts_merge),
    Claim("cross-cost", "A classifier does much worse under another task's encoder.",
          "more than 5 points below its own encoder on average",
          "Figure A(a)", "GTSRB's under SVHN's encoder: 31.4 of 98.7",
          "cross_task", judges_data.foreign_encoders_cost),
    Claim("pilot", "Heads trained on merged features fit other encoders better almost everywhere.",
          "four in five cells of coefficient × task gain",
          "Figure 3b", "nearly all positive, SVHN's around zero",
          "pilot", judges_data.trained_heads_fit_others),
    Claim("pilot-lambda", "How much such heads gain depends on the merged encoder.",
          "the mean gain differs by more than a point between coefficients",
          "Figures 3b and H", "shown per cell", "pilot", judges_data.merged_encoder_matters),
    Claim("fewest-lost", "SyMerge loses the fewest images that the experts get right.",
          "the smallest share of test images among the methods",
          "Figure 7a", "shown without numbers", "discrepancy", judges_data.fewest_lost),
    Claim("net-loss", "SyMerge has the smallest net loss against the experts.",
          "the smallest share of lost minus gained test images",
          "Figure 7b", "shown without numbers", "discrepancy", judges_data.smallest_net_loss),
    Claim("sparsity", "Heads beside the coefficients make more coefficients zero, and do better.",
          "more than one percentage point more zeros, and a higher mean",
          "Figures F and G", "37.2 to 55.9 % (84.6 to 90.1) for ViT-B/32, 23.3 to 55.0 % for "
          "ViT-L/14", "sparsity", judges_data.heads_make_zeros),
    Claim("tsne", "Entropy minimisation forms groups that are not the true classes.",
          "the drawn task stays more than 5 points below its expert",
          "Figure D", "shown without numbers", "tsne", judges_data.groups_are_not_classes),
    Claim("disjoint", "SyMerge merges experts of different initialisations, others do not.",
          "its mean is 10 points above weight averaging, AdaMerging and Surgery",
          "project page", "79.1; weight averaging 6.9, AdaMerging 5.4, Surgery 25.6",
          "disjoint",
          best_is("symerge", ("weight_average", "adamerging", "surgery"), margin=10.0)),
    Claim("proposition", "A merge of two has at most the mean of both losses.",
          "the inequality holds for 95 % of the pairs",
          "Proposition 1", "proven under cross-task linearity, no numbers",
          "proposition", judges_data.bound_holds),
    Claim("language", "On texts, too, SyMerge is the best merge into one encoder.",
          "its mean is above that of every method without adaptation that has one encoder",
          "Table 3", "83.9; best other Iso-C 71.9 (RoBERTa-base, GLUE's 8 tasks)",
          "language", best_is("symerge", judges.ONE_ENCODER)),
    Claim("language-all", "On texts SyMerge is above EMR, Surgery and ProbSurgery, too.",
          "its mean is above theirs, which store more than one encoder",
          "Table 3", "83.9; ProbSurgery 81.6, Surgery 80.5, EMR 80.2",
          "language", best_is("symerge", ("emr", "surgery_on_task_arithmetic",
                                          "probsurgery_on_task_arithmetic"))),
    Claim("language-experts", "On texts SyMerge comes close to the individual experts.",
          "at least 98 % of the experts' scores, averaged over tasks",
          "Table 3", "83.9 of 85.6", "language", judges.near_experts("symerge", 98.0)),
    Claim("language-both", "On texts coefficients and heads do more together than either alone.",
          "its mean is above that of coefficients alone and of heads alone",
          "Figure B", "shown without numbers",
          "language", best_is("symerge", ("symerge_coefficients", "symerge_head"))),
    Claim("language-head", "On texts heads alone do more than coefficients alone.",
          "the mean is higher", "Figure B", "shown without numbers",
          "language", improves("symerge_head", "symerge_coefficients")),
    Claim("dense", "On dense prediction, too, SyMerge is the best merge into one encoder.",
          "it is better in each of the five metrics than every method without adaptation that has "
          "one encoder",
          "Table 2", "49.8, 73.1, 45.3, 18.8, 26.2; best other 39.9, 64.0, 54.2, 22.4, 29.1",
          "dense", judges_dense.best_in_every_metric),
    Claim("dense-all", "On dense prediction SyMerge is above EMR, Surgery and ProbSurgery, too.",
          "it is better in each metric than these, which store more than one encoder",
          "Table 2", "best of each: 43.6, 67.6, 48.6, 19.4, 26.5",
          "dense", judges_dense.best_of_those_that_store_more),
    Claim("dense-experts", "On dense prediction SyMerge comes close to the individual experts.",
          "at least 90 % of the experts' score in each metric, errors inverted",
          "Table 2", "95.8 %, 98.5 %, 91.6 %, 92.0 %, 92.4 %",
          "dense", judges_dense.near_experts_in_every_metric),
    Claim("dense-others", "On dense prediction methods without adaptation fall far behind.",
          "each with one encoder loses a tenth of the experts' scores or more, on average",
          "Table 2", "76.4 % of the experts' with LiNeS, the best of them",
          "dense", judges_dense.others_fall_behind),
)  # fmt: skip
