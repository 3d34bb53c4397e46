"""Chart cards: for every chart what it shows, in one line, by the name it has in the page."""

CHARTS: dict[str, tuple[str, str]] = {
    "probabilities": (
        "Probabilities",
        "How likely the new and the old object are after the edit prompt, its paraphrases and the neighbors (there: "
        "their own answer), before the edit and at iteration k.",
    ),
    "perplexity": (
        "Perplexity per iteration",
        "Edit-target perplexity of the optimised states and of the edited weights; their difference is delta p, which "
        "the stop rule wants within the tolerance.",
    ),
    "next_token": (
        "Next token",
        "The ten tokens the model finds likeliest behind the edit prompt, before the edit and at iteration k.",
    ),
    "drift": (
        "Neighbor drift",
        "How the probability of each neighbor's own answer changed; crossed ones no longer have it as their first.",
    ),
    "metrics": ("Accuracy per iteration", "The shares of prompts answered as they should be, per iteration."),
    "loss": (
        "Target optimisation",
        "The terms of what an iteration minimises, step by step: the new object, what must not change, and decay.",
    ),
    "losses": ("Target optimisation", "The same terms live, of the optimisation that runs now."),
    "tradeoff": (
        "Trade-off",
        "What an edit keeps of its neighbors (specificity) at the efficacy it reaches, one point per iteration.",
    ),
    "ladder": ("Ladder", "What each ingredient of fine-tuning adds, on the facts of the form, one recipe per step."),
    "bench-left": ("Runs, first chart", "The metric chosen above over the iterations, one line per run."),
    "bench-right": ("Runs, second chart", "The metric chosen above over the iterations, one line per run."),
    "runs-left": ("Runs, first chart", "The metric chosen above over the iterations, one line per run."),
    "runs-right": ("Runs, second chart", "The metric chosen above over the iterations, one line per run."),
    "trace-hidden": (
        "Trace, hidden state",
        "How much of the answer's probability comes back when one state of the blurred run is made clean: the residual "
        "stream after a block, at one token.",
    ),
    "trace-mlp": (
        "Trace, MLP",
        "The same with the output of the MLPs in a window of layers put back; where facts are looked up, it is high.",
    ),
    "trace-attention": (
        "Trace, attention",
        "The same with the output of attention in a window of layers put back; where facts are fetched, it is high.",
    ),
    "trace-curves": (
        "Indirect effect by layer",
        "The three kinds at the subject's last token, layer by layer; over several facts with their standard error.",
    ),
    "lens-before": (
        "Logit lens before",
        "What the unedited model would say at every token if it stopped after a block: the first choice, and by colour "
        "its probability.",
    ),
    "lens-after": (
        "Logit lens after",
        "The same with the edit on; framed cells have another first choice than before.",
    ),
    "lens-chances": (
        "Objects by layer",
        "How likely the new and the old object are behind the prompt if the model stopped after a block, before and "
        "after the edit.",
    ),
    "changed-norms": (
        "Size of the update",
        "Frobenius norm of every layer's update, divided by that of the weight it is added to.",
    ),
    "changed-values": (
        "Shape of the update",
        "Singular values of every layer's update, largest first: how many directions it really has.",
    ),
    "changed-drift": (
        "Keys and drift",
        "For every probe how alike its key and the edited fact's are, or how far the update moves it, against how much "
        "its own answer lost.",
    ),
    "lesson": ("The lesson's chart", "What this step found, from the model as it was just run."),
}
