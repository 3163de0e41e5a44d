"""The 80 COCO classes and the words that name them, after the synonym list of CHAIR (Rohrbach et al. 2018, BSD-2).

Doubles and spellings that the official script can never match (a leading space, a capital) are left out. A word in two
classes belongs to the later one, as there.
"""

SYNONYMS = """
person: adult baby baker bicyclist biker boy bride buyer caller camper chef child children cop cowboy coworker doctor drinker
 driver father female foreigner gentleman girl grandchild groom guy hunter kid lady male man mother offender officer
 passenger patient people pitcher player policeman politician rider serviceman shopper sister skateboarder skater skier
 snowboarder soldier solider student teenager thief traveler trespasser villager walker woman worker
bicycle: bike minibike trike unicycle
car: automobile cab coupe hatchback jeep limo minivan sedan suv taxi taxicab van
motorcycle: moped motor_cycle motorbike scooter
airplane: air_plane airbus aircraft biplane jet jetliner monoplane plane seaplane
bus: minibus trolley
train: caboose locomotive tramway
truck: firetruck hauler lorry pickup
boat: barge battleship canoe catamaran dinghy ferry ferryboat freighter houseboat kayak lifeboat liner motorboat
 paddleboat pontoon powerboat riverboat rowboat sailboard sailboat schooner ship skiff speedboat steamboat steamship
 trawler tugboat vessel watercraft yacht
traffic_light: stop_light stoplight street_light streetlight traffic_signal
fire_hydrant: hydrant
stop_sign:
parking_meter:
bench: pew
bird: blackbird bluebird bluejay buzzard chickadee cockatiel cockatoo condor cormorant cowbird crow duck egret falcon finch
 flamingo fowl goose gosling gull heron hummingbird loon lorikeet macaw magpie mallard oriole osprey ostrich owl parakeet
 parrot peacock peafowl pelican pheasant pigeon puffin quail raven robin rooster sandpiper seabird seagull shorebird
 songbird sparrow swan turkey vulture warbler waterbird waterfowl willet woodpecker kingfisher
cat: feline kitten tabby
dog: beagle brindle bulldog canine chihuahua cocker collie corgi dachshund doberman doggie doggy greyhound hound husky
 labrador mutt pitbull poodle pug pup puppy retriever rottweiler schnauzer sheepdog spaniel terrier weimaraner whippet
horse: bronc bronco clydesdale colt equine foal mare mustang palomino pony racehorse stallion
sheep: ewe goat lamb ram
cow: bison buffalo bull calf cattle heifer holstein ox oxen zebu
elephant:
bear: panda
zebra:
giraffe:
backpack: knapsack
umbrella:
handbag: briefcase purse wallet
tie: bow bow_tie
suitcase: luggage suit_case
frisbee:
skis: ski
snowboard:
sports_ball: ball
kite:
baseball_bat:
baseball_glove:
skateboard:
surfboard: longboard shortboard skimboard wakeboard
tennis_racket: racket
bottle:
wine_glass:
cup:
fork:
knife: knive pocketknife
spoon:
bowl: container
banana:
apple:
sandwich: burger cheeseburger hamburger sub
orange:
broccoli:
carrot:
hot_dog:
pizza:
donut: bagel doughnut
cake: coffeecake cupcake pancake shortcake
chair: seat stool
couch: chesterfield futon loveseat recliner settee sofa
potted_plant: houseplant
bed:
dining_table: desk table
toilet: commode lavatory potty urinal
tv: monitor televison television
laptop: computer laptop_computer lenovo macbook netbook notebook
mouse:
remote:
keyboard:
cell_phone: cellphone mobile_phone phon phone smartphone telephone
microwave:
oven: stove stove_top_oven stovetop
toaster:
sink:
refrigerator: freezer fridge
book:
clock:
vase:
scissors:
teddy_bear: teddybear
hair_drier: hairdryer
toothbrush:
"""


def _read(text: str) -> dict[str, str]:
    objects = {}
    for entry in text.strip().replace("\n ", " ").split("\n"):
        name, _, synonyms = entry.partition(":")
        for word in (name, *synonyms.split()):
            objects[word.replace("_", " ")] = name.replace("_", " ")
    return objects


OBJECTS = _read(SYNONYMS)
"""word → class; the classes themselves are among the words."""
