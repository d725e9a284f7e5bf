"""Mean and deviation of the final hidden state over public texts, by which clients standardise theirs without showing any of their own."""

from __future__ import annotations

import torch

from ifed.modeling.batching import Row
from ifed.modeling.forward import run_rows
from ifed.modeling.language_model import LanguageModel
from ifed.modeling.prompts import PromptTemplate
from ifed.tensors.regression import Standardization

# Short and long sentences of many kinds, written for this purpose. Changing one changes the scale of every head solved afterwards.
PUBLIC_TEXTS = (
    "The film was a quiet triumph, and nobody I know regretted the ticket.",
    "Stocks fell sharply on Monday after the central bank raised its rates for the third time this year.",
    "Water boils at 100 degrees at sea level; on a mountain it boils sooner.",
    "Can you tell me where the nearest pharmacy is?",
    "My card was declined at the supermarket although there is money in the account.",
    "The striker scored twice in the last ten minutes and the home crowd went wild.",
    "I have been waiting for my parcel for two weeks and nobody answers the phone.",
    "Scientists have found a new species of frog in the cloud forests of Ecuador.",
    "thanks so much!! you made my day",
    "The committee will meet again in March to decide on the budget.",
    "He walked slowly along the river, thinking of what his father had said.",
    "Who wrote the national anthem of France?",
    "This blender broke after three uses. Do not buy it.",
    "The patient reports mild headaches in the morning and no other symptoms.",
    "A new chip promises twice the speed at half the power, the company said on Tuesday.",
    "why are you always like this",
    "Please reset my password, I cannot log in since yesterday.",
    "The novel tells the story of three sisters who inherit a lighthouse.",
    "How many bones does an adult human have?",
    "The government and the unions reached an agreement late on Friday night.",
    "An hour of wonderful music, played with warmth and precision.",
    "I feel terrible today, everything goes wrong.",
    "The recipe needs two eggs, a cup of flour and a pinch of salt.",
    "Turn left at the second traffic light, then it is the third house on the right.",
    "The plot is thin, the jokes are old, and the ending makes no sense.",
    "Oil prices rose on fears of a shortage in the winter.",
    "What time does the last train leave?",
    "The match ended in a draw after extra time and penalties were avoided.",
    "She opened the letter, read it twice and put it into the fire.",
    "Our server has been unreachable since the update at four o'clock.",
    "The museum shows early drawings, letters and two paintings that were thought lost.",
    "lol that was hilarious, send me another one",
    "The court ruled that the contract was void.",
    "Mix the powder with cold water and let it rest for five minutes.",
    "A brilliant performance saves an otherwise ordinary drama.",
    "The spacecraft entered orbit around Mars on Thursday after a journey of seven months.",
    "I would like to transfer 200 euros to my savings account.",
    "The weather will be mild with some rain in the north.",
    "What is the difference between a crocodile and an alligator?",
    "They lost the first set but won the next two easily.",
    "The soup was cold and the waiter rude; we shall not come back.",
    "Researchers trained the network on a million images and measured its errors.",
    "It is a long way from the village to the sea, and the road is bad.",
    "Good morning, I have a question about my invoice of last month.",
    "The company will cut 2,000 jobs in Europe and move production to Asia.",
    "I love you more than anything in the world.",
    "Which planet has the most moons?",
    "The director never decides whether he wants a comedy or a tragedy.",
    "Voters go to the polls on Sunday in the closest election for decades.",
    "The engine makes a strange noise when it is cold.",
    "He is angry because you did not call him back.",
    "A charming, modest book about growing old.",
    "Take one tablet twice a day after meals.",
    "The software update fixes several security problems.",
    "We had a great time at the beach, the children did not want to leave.",
    "The bank confirmed that no customer data had been stolen.",
    "How do I cancel my subscription?",
    "The play is set in a small town in the year of the great flood.",
    "Gold medals went to Kenya and Norway in the distance races.",
    "I am not sure what to think about all this.",
    "The bridge was closed for repairs until further notice.",
    "No, that is not what I ordered.",
    "Astronomers measured the light of a galaxy that is thirteen billion years old.",
    "The concert was cancelled because the singer was ill.",
)


def public_standardization(lm: LanguageModel, template: PromptTemplate) -> Standardization:
    """Return the statistics of the final state at the last token of `PUBLIC_TEXTS` in a template, with the base model."""
    rows = [Row.for_last_token(template.prompt(text).ids) for text in PUBLIC_TEXTS]
    states = run_rows(lm, rows, [None] * len(rows))
    return Standardization.of(torch.cat(states).float().cpu().numpy())
