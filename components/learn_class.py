"""The lesson's page for lecturers: how to run it for a class, what to ask, and where to go on."""

from collections.abc import Iterable
from html import escape

from editing_core.lesson import MODEL, STEPS
from editing_core.lesson_findings import Finding

CLASS = 20  # browsers the time is worked out for
QUESTIONS = (
    (
        "Step 1 asks only for facts that the model knows. Why does that matter?",
        "What is not known cannot be overwritten, and a neighbor that was wrong before cannot be lost. Otherwise the "
        "edit would be praised or blamed for what the model could not do anyway.",
    ),
    (
        "In step 2 two facts fell short. Is that because seven facts share one update?",
        "Only for one of them. Edited alone, Ed O'Brien takes at once, Johannes Brahms still falls short: writing a "
        "state into weights is a compromise with all that the layers already hold, and other edits make it harder. "
        "Try it: open the case in the Edit tab, switch off that the facts are edited together, and press Edit.",
    ),
    (
        "Why does the stopping rule look at delta p and not at how many facts took?",
        "Delta p needs no test prompts: it compares what was optimised with what the weights give. It asks whether the "
        "writing is done; whether the edit is good has to be measured on prompts the editor never saw.",
    ),
    (
        "In step 3 the rule would have stopped before the last paraphrase followed. Was it wrong?",
        "It kept its promise, which is about the edit targets. Paraphrases are generalization, which the rule does not "
        "see; going on buys some of it, and every further iteration changes the weights a little more.",
    ),
    (
        "Which neighbors are lost in step 4, and what do they have in common?",
        "All lost ones begin with Alfa Romeo, as the edited subject does; not every Alfa Romeo is lost, but nothing "
        "else is. A good guess is that their keys lie close to the edited one, so that one update meets both; to check "
        "it, have the drift chart of the Edit tab drawn by distance.",
    ),
    (
        "In step 5 three neighbors assist and are not measured. Why not?",
        "The editor has seen them, so they would be training data in a test. The comparison with step 4 uses the same "
        "remaining neighbors on both sides.",
    ),
    (
        "What did the assistance cost, and which half of it did the work?",
        "The paraphrases are less sure than in step 4, though they still give the new object. In the Edit tab, try NA "
        "without neighbor keys and neighbor keys without NA: here NA by itself leaves one of the two lost neighbors "
        "lost, and neighbor keys by themselves keep both.",
    ),
    (
        "Eight facts and one small model: what have we shown?",
        "That these things happen, not how often. For that one edits hundreds of facts, states standard errors, and "
        "compares methods at the same efficacy, as the Benchmark tab and the paper do.",
    ),
)
HOST = (
    "Start EditScope on one computer that the class can reach over the network: <code>GRADIO_SERVER_NAME=0.0.0.0 "
    "python app.py --public</code>. Everybody opens <code>http://ADDRESS-OF-THE-COMPUTER:7860</code> in a browser, and "
    "installs nothing.",
    "The host needs Python 3.11, 3.12 or 3.13 and 1 GB of free memory, but neither a GPU nor, once EditScope is "
    "installed, the internet.",
    f"The lesson always edits the bundled {MODEL}, whichever model the header names.",
    "The edits of all browsers wait in one queue and are computed one after the other; Stop gives the place up. At "
    "most 100 wait at once.",
    # Measured with 12 clients of the running page on one thread of two cores that had other work, too.
    "With 12 browsers that pressed at the same moment on two processor cores, the last one had its result after 27 "
    "seconds in step 2 and after 42 in step 4. Where the host computes other things as well, start it with "
    "<code>OMP_NUM_THREADS=1</code>: with as many threads as cores the same took minutes.",
    "Students see nothing of each other. Lesson, edits and stack belong to the browser they were made in; the one "
    "model they share carries an edit only while that is measured, and is bit for bit the same afterwards.",
)
NEXT = (
    "<b>Edit</b>: every case of steps 2 to 5 opens there by its button, to be changed and edited again.",
    "<b>Explore</b>: where in the model a fact is found, and what each layer would say.",
    "<b>Benchmark</b>: the same with hundreds of facts, several editors and standard errors.",
    "The paper: <i>Resolving UnderEdit &amp; OverEdit with Iterative &amp; Neighbor-Assisted Model Editing</i>, "
    "<a href='https://arxiv.org/abs/2503.11895' target='_blank' rel='noopener'>arXiv 2503.11895</a>.",
)


def class_html(found: Iterable[Finding]) -> str:
    """The page. found: what this browser's lesson found, for how long this host took."""
    asked = "".join(f"<li><b>{escape(q)}</b><div>{escape(a)}</div></li>" for q, a in QUESTIONS)
    return (
        "<div class='es-lesson es-class'><h2>For lecturers</h2><div class='es-columns'>"
        f"<section><h3>Run it for a class</h3>{_list((*HOST, pace(list(found))))}<h3>Where to go on</h3>{_list(NEXT)}"
        f"</section><section><h3>What to ask, and what a good answer says</h3><ol>{asked}</ol></section></div></div>"
    )


def pace(found: list[Finding]) -> str:
    """How long this host computed, and what that makes for a class."""
    if len(found) < len(STEPS):
        return "Run all five steps once on the host: this line then says how long they take, and how long for a class."
    seconds = sum(finding.seconds for finding in found)
    return (
        f"In this browser the five steps took this host {seconds:.0f} seconds of computing; for {CLASS} browsers that "
        f"makes {CLASS * seconds / 60:.0f} minutes in all, so let some watch while others press."
    )


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"
